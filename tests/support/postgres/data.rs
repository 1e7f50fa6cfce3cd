//! The programs of PostgreSQL, the user they run as, and new data directories.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use super::processes::unique;

/// Where Debian has them, which puts no server in the path.
const DEBIAN: &str = "/usr/lib/postgresql";

/// A program of the newest PostgreSQL there is.
pub(super) fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|version| version.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| Path::new(&format!("{DEBIAN}/{version}/bin/{name}")).exists())
        .max();
    match newest {
        Some(version) => format!("{DEBIAN}/{version}/bin/{name}").into(),
        None => in_path(name, "postgresql"),
    }
}

pub(super) fn in_path(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // Where servers are, which not every user has in the path.
        .chain(["/usr/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.exists())
        .unwrap_or_else(|| panic!("{name} is not installed: apt-get install -y {package}"))
}

/// A command in this directory, as the user to whom it belongs: the server refuses to run as
/// root.
pub(super) fn command(program: impl AsRef<Path>, directory: &Path) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .current_dir(directory)
        // An interrupt from the keyboard reaches the test alone; the watcher does the rest.
        .process_group(0);
    if let Some((user, group)) = other_user() {
        command.uid(user).gid(group);
    }
    command
}

/// The user that stands in for root, if that is who we are.
fn other_user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        (id(&["-u"]) == Some(0)).then(|| {
            ["postgres", "nobody"]
                .iter()
                .find_map(|name| Some((id(&["-u", name])?, id(&["-g", name])?)))
                .expect("PostgreSQL does not run as root, and there is no other user")
        })
    })
}

fn id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

/// A new directory with the folder `data` in it, which has what `initdb` makes.
pub(super) async fn directory() -> PathBuf {
    let made = tokio::task::spawn_blocking(|| {
        let template = template();
        let directory = empty_directory("postgres-test");
        let mut copy = command("cp", &directory);
        copy.arg("-R").arg(template.join("data")).arg(&directory);
        succeed(&mut copy);
        directory
    });
    made.await.unwrap()
}

pub(super) fn empty_directory(purpose: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("{purpose}-{}", unique()));
    fs::create_dir(&directory).unwrap();
    if let Some((user, group)) = other_user() {
        chown(&directory, Some(user), Some(group)).unwrap();
    }
    directory
}

/// Made once for all servers of a test program: a copy takes a fraction of the time.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    let template = TEMPLATE.get_or_init(|| {
        let directory = empty_directory("postgres-template");
        let remover = Command::new("sh")
            .args(["-c", "read -r line; rm -rf -- \"$1\"", "sh"])
            .arg(&directory)
            .process_group(0)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut initdb = command(program("initdb"), &directory);
        initdb
            .args(["--username=postgres", "--auth=trust", "--no-sync"])
            .args(["--encoding=UTF8", "--locale=C", "--no-instructions"])
            .arg("--pgdata")
            .arg(directory.join("data"));
        succeed(&mut initdb);
        Template {
            directory,
            _remover: remover,
        }
    });
    &template.directory
}

struct Template {
    directory: PathBuf,
    /// Removes the directory when the program ends, however it does, and with it the pipe.
    _remover: Child,
}

fn succeed(command: &mut Command) {
    let output = command
        .stdin(File::open("/dev/null").unwrap())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
