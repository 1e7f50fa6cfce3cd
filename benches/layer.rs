//! What the layer costs, beside the same service without it.
//!
//! `cargo bench --bench layer` lets criterion time every variant, and then prints one
//! table: all variants in turn in one process, as ratios to the bare service, with the
//! allocations of one request. `-- --table` prints the table alone. Ratios of one run
//! compare; absolute times of a shared machine do not.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::routing::post;
use axum::{Router, http::StatusCode};
use criterion::{BenchmarkId, Criterion, criterion_group};
use dashmap::DashMap;
use http::{Request, Response};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{IdempotencyLayer, SharedByAllCallers};

const SIZES: [(&str, usize); 3] = [("256 B", 256), ("16 KiB", 16 << 10), ("1 MiB", 1 << 20)];

/// What is asked of the service.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Variant {
    /// The service alone, with a key that nobody reads.
    NoLayer,
    /// A layer that does nothing but box its future: what any such layer costs in axum.
    Boxed,
    /// The service alone, with what no such layer can do without: one SHA-256 of the body,
    /// one insertion into a map, one update of it.
    Floor,
    PassThrough,
    FirstRun,
    Replay,
    Conflict,
}

const VARIANTS: [Variant; 7] = [
    Variant::NoLayer,
    Variant::Boxed,
    Variant::Floor,
    Variant::PassThrough,
    Variant::FirstRun,
    Variant::Replay,
    Variant::Conflict,
];

type App = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

fn app(variant: Variant) -> App {
    let app = Router::new().route(
        "/echo",
        post(async |body: Bytes| (StatusCode::CREATED, body)),
    );
    let app = match variant {
        Variant::NoLayer => app,
        Variant::Floor => {
            let records = Arc::new(DashMap::new());
            Router::new().route(
                "/echo",
                post(async move |body: Bytes| {
                    let digest: [u8; 32] = Sha256::digest(&body).into();
                    let key = records.len() as u64;
                    records.insert(key, (digest, None));
                    if let Some(mut record) = records.get_mut(&key) {
                        record.1 = Some(body.clone());
                    }
                    (StatusCode::CREATED, body)
                }),
            )
        }
        Variant::Boxed => app.layer(tower::layer::layer_fn(Boxing)),
        Variant::Conflict => Router::new()
            .route(
                "/echo",
                post(async |_: Bytes| std::future::pending::<()>().await),
            )
            .layer(layer()),
        Variant::PassThrough | Variant::FirstRun | Variant::Replay => app.layer(layer()),
    };
    // As a server has it: axum resolves the handlers once, and not for every request.
    BoxCloneSyncService::new(app.with_state(()))
}

fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new(), SharedByAllCallers)
}

#[derive(Clone)]
struct Boxing<S>(S);

impl<S: Service<R, Future: Send + 'static>, R> Service<R> for Boxing<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        Box::pin(self.0.call(request))
    }
}

fn request(variant: Variant, body: &Bytes, number: u64) -> Request<Body> {
    let key = match variant {
        Variant::Replay | Variant::Conflict => u64::MAX,
        _ => number,
    };
    let name = match variant {
        Variant::PassThrough => "x-no-idempotency-key",
        _ => "idempotency-key",
    };
    Request::post("/echo")
        .header(name, format!("8e03978e-40d5-43dd-bc93-{key:020}"))
        .header("content-type", "application/octet-stream")
        .body(Body::from(body.clone()))
        .expect("the parts of the request are sound")
}

async fn send(app: &App, request: Request<Body>) -> usize {
    let response = app
        .clone()
        .oneshot(request)
        .await
        .unwrap_or_else(|never| match never {});
    let body = response
        .into_body()
        .collect()
        .await
        .expect("no body breaks off here");
    body.to_bytes().len()
}

/// A service with its runtime, in the state that the variant is about.
struct Scene {
    runtime: Runtime,
    app: App,
    variant: Variant,
    body: Bytes,
    sent: u64,
}

impl Scene {
    fn new(variant: Variant, size: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be had");
        let body = Bytes::from(vec![b'x'; size]);
        let app = app(variant);
        match variant {
            Variant::Conflict => {
                let first = app.clone().oneshot(request(variant, &body, 0));
                runtime.spawn(first);
                runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
            }
            _ => {
                runtime.block_on(send(&app, request(variant, &body, u64::MAX)));
            }
        }
        Self {
            runtime,
            app,
            variant,
            body,
            sent: 0,
        }
    }

    fn time(&mut self, iterations: u64) -> Duration {
        let requests: Vec<_> = (0..iterations)
            .map(|number| request(self.variant, &self.body, self.sent + number))
            .collect();
        self.sent += iterations;
        self.runtime.block_on(async {
            let began = Instant::now();
            for request in requests {
                black_box(send(&self.app, request).await);
            }
            began.elapsed()
        })
    }

    /// A new one in its place, once too much is on record.
    fn renewed(self) -> Self {
        let size = self.body.len();
        let kept = if self.variant == Variant::FirstRun {
            self.sent
        } else {
            0
        };
        if kept * size.max(512) as u64 > 256 << 20 {
            Self::warm(self.variant, size)
        } else {
            self
        }
    }

    /// As in a service that has run for a while: the tables of the store have grown.
    fn warm(variant: Variant, size: usize) -> Self {
        let mut scene = Self::new(variant, size);
        scene.time((16 << 20) / (size as u64).max(1 << 10));
        scene
    }

    /// Of the median request: now and then one meets a table that has to grow.
    fn allocations(&mut self) -> u64 {
        let mut counts: Vec<_> = (0..51)
            .map(|_| {
                let request = request(self.variant, &self.body, self.sent);
                self.sent += 1;
                let counted = allocation_counter::measure(|| {
                    self.runtime.block_on(send(&self.app, request));
                });
                counted.count_total
            })
            .collect();
        counts.sort_unstable();
        counts[counts.len() / 2]
    }
}

fn timed_by_criterion(criterion: &mut Criterion) {
    for (name, size) in SIZES {
        let mut group = criterion.benchmark_group(name);
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(1));
        group.warm_up_time(Duration::from_millis(300));
        for variant in VARIANTS {
            group.bench_function(
                BenchmarkId::from_parameter(format!("{variant:?}")),
                |bencher| {
                    let mut scene = Some(Scene::warm(variant, size));
                    bencher.iter_custom(|mut iterations| {
                        let mut total = Duration::ZERO;
                        while iterations > 0 {
                            let now = iterations.min(per_round(size));
                            let mut current = scene
                                .take()
                                .map_or_else(|| Scene::warm(variant, size), Scene::renewed);
                            total += current.time(now);
                            scene = Some(current);
                            iterations -= now;
                        }
                        total
                    });
                },
            );
        }
        group.finish();
    }
}

/// Requests are made ahead, so that only their service is timed.
fn per_round(size: usize) -> u64 {
    ((8 << 20) / size as u64).clamp(4, 256)
}

/// All variants in turn, many times over: what disturbs the machine disturbs them alike.
fn table() {
    println!("\n| body | variant | median ns | ratio to no layer | allocations (over no layer) |");
    println!("|---|---|---:|---:|---:|");
    for (name, size) in SIZES {
        let rounds = if size > 1 << 16 { 41 } else { 301 };
        let requests = per_round(size);
        let mut scenes = VARIANTS.map(|variant| Some(Scene::warm(variant, size)));
        let mut times = VARIANTS.map(|_| Vec::with_capacity(rounds));
        for _ in 0..rounds {
            for (scene, times) in scenes.iter_mut().zip(&mut times) {
                *scene = scene.take().map(|scene| {
                    let mut scene = scene.renewed();
                    times.push(scene.time(requests).as_nanos() as f64 / requests as f64);
                    scene
                });
            }
        }
        let counts = scenes.map(|scene| scene.map_or(0, |mut scene| scene.allocations()));
        let medians = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        for ((variant, median), count) in VARIANTS.into_iter().zip(medians).zip(counts) {
            println!(
                "| {name} | {variant:?} | {median:.0} | {:.2} | {count} (+{}) |",
                median / medians[0],
                count - counts[0],
            );
        }
    }
}

criterion_group!(benches, timed_by_criterion);

fn main() {
    let has = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    if !has("--table") {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
    // Run as a test, every variant runs once, and there is nothing to compare.
    if has("--bench") {
        table();
    }
}
