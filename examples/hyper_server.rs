//! The layer without a framework: hyper, a `service_fn`, and a shutdown on Ctrl-C that
//! waits for every run, also for those whose client has left.
//!
//! `cargo run --example hyper_server`, then hang up on it after a second, and press Ctrl-C
//! on the server or ask for the answer:
//!
//! ```sh
//! curl -i localhost:3000 -H 'X-Account: ann' -H 'Idempotency-Key: k1' -d hello --max-time 1
//! curl -i localhost:3000 -H 'X-Account: ann' -H 'Idempotency-Key: k1' -d hello
//! ```

use std::pin::pin;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tower::{Layer, service_fn};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{IdempotencyLayer, RequestBody, by_trusted_header};

/// Takes its time, and says what it was sent.
async fn handle(
    request: Request<RequestBody<Incoming>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    println!("running");
    sleep(Duration::from_secs(5)).await;
    println!("done");
    Ok(Response::new(Full::new(body)))
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let idempotency = IdempotencyLayer::new(MemoryStore::new(), by_trusted_header("x-account"));
    let in_flight = idempotency.in_flight();
    let service = TowerToHyperService::new(idempotency.layer(service_fn(handle)));

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    let (stop, stopped) = watch::channel(());
    let mut ctrl_c = pin!(tokio::signal::ctrl_c());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut ctrl_c => break,
        };
        let Ok((stream, _)) = accepted else {
            continue;
        };
        let (service, mut stopped) = (service.clone(), stopped.clone());
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }

    drop(listener);
    stop.send_replace(());
    drop(stopped);
    // The connections finish their answers; one that stalls is not waited for …
    let _ = timeout(Duration::from_secs(10), stop.closed()).await;
    // … but every run is, with or without its client.
    in_flight.idle().await;
    Ok(())
}
