//! PgBouncer in transaction mode before a server.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use ::sqlx::postgres::PgConnectOptions;

use super::PostgresServer;
use super::clients::options_at;
use super::data;
use super::processes::{self, Patience};

/// Ends itself when the test is gone: its watcher is the one of a server, in short.
const WATCHED: &str = r#"
exec 3<&0
directory=$1
shift
( read -r line <&3; kill -9 $$; rm -rf -- "$directory" ) 2>/dev/null &
exec "$@" </dev/null 3<&-
"#;

/// Gives a connection to a client for the length of a transaction only. Dropped, it is gone
/// at once.
pub struct PgBouncer {
    port: u16,
    directory: PathBuf,
    process: Child,
}

struct PortTaken;

impl PgBouncer {
    /// With at most that many connections to each database of the server.
    pub async fn before(server: &PostgresServer, connections: usize) -> Self {
        for _ in 0..20 {
            let mut bouncer = Self::spawn(server, connections);
            if bouncer.until_ready().await.is_ok() {
                return bouncer;
            }
        }
        panic!("every port is taken by somebody else");
    }

    fn spawn(server: &PostgresServer, connections: usize) -> Self {
        let directory = data::empty_directory("pgbouncer-test");
        let port = processes::free_port();
        let (users, settings) = (directory.join("users"), directory.join("pgbouncer.ini"));
        fs::write(&users, "\"postgres\" \"\"\n").unwrap();
        let text = format!(
            "[databases]\n\
             * = host=127.0.0.1 port={}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {port}\n\
             unix_socket_dir =\n\
             auth_type = trust\n\
             auth_file = {}\n\
             admin_users = postgres\n\
             pool_mode = transaction\n\
             default_pool_size = {connections}\n\
             max_client_conn = 200\n\
             ignore_startup_parameters = extra_float_digits,options\n",
            server.port(),
            users.display()
        );
        fs::write(&settings, text).unwrap();
        let log = fs::File::create(directory.join("log")).unwrap();
        let process = data::command("sh", &directory)
            .args(["-c", WATCHED, "sh"])
            .arg(&directory)
            .arg(data::in_path("pgbouncer", "pgbouncer"))
            .arg(&settings)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            port,
            directory,
            process,
        }
    }

    async fn until_ready(&mut self) -> Result<(), PortTaken> {
        let patience = Patience::new();
        let log = self.directory.join("log");
        let log = || fs::read_to_string(&log).unwrap();
        while !log().contains("process up") {
            if let Some(status) = self.process.try_wait().unwrap() {
                if log().contains("Address already in use") {
                    return Err(PortTaken);
                }
                panic!("pgbouncer does not start, {status}:\n{}", log());
            }
            patience.wait(|| format!("it is ready:\n{}", log())).await;
        }
        Ok(())
    }

    /// As those of the server, to the database `postgres`.
    pub fn options(&self) -> PgConnectOptions {
        options_at(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // With its end of the pipe, so that the watcher goes too.
        drop(self.process.stdin.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
