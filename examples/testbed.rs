//! The layer behind a fixed set of routes, for black-box suites, load generators and
//! crash tests in any language.
//!
//! ```sh
//! cargo run --example testbed -- --listen 127.0.0.1:8080 --lease-ms 1000
//! cargo run --example testbed -- --help
//! cargo run --features sqlite --example testbed -- --store sqlite --store-url testbed.db
//! ```
//!
//! It speaks HTTP/1.1 and HTTP/2 (prior knowledge). Once it accepts connections it prints
//! one line on stdout, `listening on http://127.0.0.1:PORT`, and nothing else. On SIGTERM
//! or Ctrl-C it stops accepting, finishes what is under way and exits with 0. The exit
//! code is 2 where the command line is at fault, and 1 where the address or the store
//! cannot be used. What puts the store at risk is a `testbed: warning: …` on stderr.

#[path = "testbed/args.rs"]
mod args;
#[path = "testbed/ledger.rs"]
mod ledger;
#[path = "testbed/routes.rs"]
mod routes;
#[path = "testbed/store.rs"]
mod store;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tower_idempotency::store::AnyStore;
use tower_idempotency::{IdempotencyLayer, SharedByAllCallers, by_trusted_header};

use self::args::{Args, Command, HELP};
use self::ledger::Ledger;
use self::store::Opened;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Fault::Misused(error)) => {
            eprintln!("testbed: {error}\nSee --help.");
            ExitCode::from(2)
        }
        Err(Fault::Failed(error)) => {
            eprintln!("testbed: {error}");
            ExitCode::FAILURE
        }
    }
}

enum Fault {
    /// It is the command line's.
    Misused(String),
    /// It is that of what the command line names.
    Failed(String),
}

async fn run() -> Result<(), Fault> {
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| word.to_string_lossy().into_owned());
    let args = match args::parse(words).map_err(Fault::Misused)? {
        Command::Serve(args) => args,
        Command::Help => {
            print!("{HELP}");
            return Ok(());
        }
    };
    let Opened { store, ledger } = store::open(&args).await?;
    let served = serve(&args, layer(&args, store), ledger).await;
    served.map_err(|error| Fault::Failed(format!("{}: {error}", args.listen)))
}

fn layer(args: &Args, store: AnyStore) -> IdempotencyLayer {
    let layer = match &args.scope_header {
        Some(name) => IdempotencyLayer::new(store, by_trusted_header(name)),
        None => IdempotencyLayer::new(store, SharedByAllCallers),
    };
    layer
        .retention(args.retention)
        .lease(args.lease)
        .max_hold(args.max_hold)
        .require_key(args.require_key)
        .on_conflict(args.on_conflict)
        .on_failure(args.on_failure)
        .request_body_limit(args.request_limit)
        .response_body_limit(args.response_limit)
}

async fn serve(
    args: &Args,
    layer: IdempotencyLayer,
    ledger: Option<Arc<dyn Ledger>>,
) -> io::Result<()> {
    // Before the ready line: whoever has read it may send the signal.
    let shutdown = shutdown_signal()?;
    let listener = TcpListener::bind(args.listen).await?;
    let address = listener.local_addr()?;
    // A chunk of `/drip` leaves when it is due.
    let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));

    let in_flight = layer.in_flight();
    let app = routes::app((!args.no_layer).then_some(layer), ledger);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let server = tokio::spawn(server.into_future());
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on http://{address}")?;
    stdout.flush()?;

    shutdown.await;
    let _ = stop.send(());
    // Every run is concluded, with or without its client.
    in_flight.idle().await;
    // Then the connections end by themselves, unless a client does not read its answer, or
    // never finishes its request.
    let _ = timeout(TO_END_CONNECTIONS, server).await;
    in_flight.idle().await;
    Ok(())
}

const TO_END_CONNECTIONS: Duration = Duration::from_secs(5);

/// Listens from here on, and is ready once SIGTERM or Ctrl-C has come.
fn shutdown_signal() -> io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        Ok(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    {
        Ok(async { drop(tokio::signal::ctrl_c().await) })
    }
}
