//! Many tasks on two nodes do to a few keys whatever a store allows: runs that end in time,
//! late or never, that are renewed, repeated, cut off, taken over, failed, sealed and
//! released, and operators between them. What was answered is left to the history.

mod counts;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::Response;
use tokio::time::{Instant, sleep};
use tower_idempotency::store::{
    AnyStore, ClaimRequest, Claimed, Completion, Fingerprint, Hold, KeyStore, Lapse, Owner,
    Ownership, Record, RecordId, ScopeId,
};

use super::history::{Event, History};

#[allow(unused_imports)]
pub use counts::counts;

/// How much is done, and by what choices.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Decides the choices of each task. Their timing is left to the machine.
    pub seed: u64,
    pub tasks: u64,
    pub keys: u64,
    pub lease: Duration,
    pub lasts: Duration,
}

impl Plan {
    /// The seed is `IDEMPOTENCY_TEST_SEED`, or any; it is printed.
    pub fn new() -> Self {
        let seed = match std::env::var("IDEMPOTENCY_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => u64::from_le_bytes(any_bytes()[..8].try_into().unwrap()),
        };
        println!("IDEMPOTENCY_TEST_SEED={seed}");
        Self {
            seed,
            tasks: 24,
            keys: 60,
            lease: Duration::from_millis(40),
            lasts: Duration::from_secs(10),
        }
    }
}

/// Every call that was made of the two, which are one store as two nodes see it.
pub async fn torture(one: impl KeyStore, other: impl KeyStore, plan: &Plan) -> Vec<Event> {
    let history = History::new();
    let stores = [
        AnyStore::new(history.of(one)),
        AnyStore::new(history.of(other)),
    ];
    let scene = Arc::new(Scene {
        stores,
        plan: plan.clone(),
        // The records of an earlier run may still be there.
        run: any_bytes(),
        end: Instant::now() + plan.lasts,
    });
    let tasks = (0..plan.tasks).map(|number| {
        let actor = Actor {
            scene: Arc::clone(&scene),
            random: Random(plan.seed ^ (number << 32)),
        };
        tokio::spawn(actor.act())
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    history.events()
}

struct Scene {
    stores: [AnyStore; 2],
    plan: Plan,
    run: [u8; 16],
    end: Instant,
}

impl Scene {
    fn id(&self, key: u64) -> RecordId {
        let mut id = [0; 32];
        // What is shown of it is the number of the key.
        id[..4].copy_from_slice(&(key as u32).to_be_bytes());
        id[16..].copy_from_slice(&self.run);
        RecordId::from_bytes(id)
    }

    /// A third of the keys live many lives, a third live some, and a third live one.
    fn retention(&self, key: u64) -> Duration {
        match key % 3 {
            0 => self.plan.lease * 5 / 2,
            1 => self.plan.lease * 12,
            _ => Duration::from_secs(600),
        }
    }
}

struct Actor {
    scene: Arc<Scene>,
    random: Random,
}

impl Actor {
    async fn act(mut self) {
        while Instant::now() < self.scene.end {
            let key = self.key();
            match self.random.below(100) {
                0..4 => self.operate(key).await,
                4..9 => drop(self.store().lookup(&self.scene.id(key)).await),
                _ => self.visit(key).await,
            }
            self.pause(3).await;
        }
    }

    /// A few keys are asked for by many.
    fn key(&mut self) -> u64 {
        let keys = self.scene.plan.keys;
        let among = if self.random.one_in(2) {
            keys
        } else {
            keys.div_ceil(5)
        };
        self.random.below(among)
    }

    /// Any of the two.
    fn store(&mut self) -> AnyStore {
        self.scene.stores[self.random.below(2) as usize].clone()
    }

    async fn pause(&mut self, at_most_millis: u64) {
        let pause = Duration::from_micros(self.random.below(at_most_millis * 1000));
        sleep(pause).await;
    }

    /// A call that is given up soon, if it has no answer by then: before it was sent, or
    /// on its way there or back.
    async fn cut<T>(&mut self, call: impl Future<Output = T>) -> Option<T> {
        let mut call = pin!(call);
        let mut left = self.random.below(60);
        poll_fn(|context| match call.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => {
                left -= 1;
                context.waker().wake_by_ref();
                Poll::Pending
            }
        })
        .await
    }

    async fn operate(&mut self, key: u64) {
        let id = self.scene.id(key);
        match self.random.below(5) {
            0..2 => drop(self.store().forget(&id).await),
            2..4 => self.resolve(id, self.scene.retention(key)).await,
            _ => drop(self.store().purge_expired(5).await),
        }
    }

    async fn resolve(&mut self, id: RecordId, retention: Duration) {
        let record = self.record();
        let _ = self.store().resolve(&id, &record, retention).await;
    }

    async fn visit(&mut self, key: u64) {
        let request = self.request(key);
        let store = self.store();
        let mut claimed = if self.random.one_in(30) {
            match self.cut(store.claim(&request)).await {
                Some(claimed) => claimed,
                None => return self.settle_doubtful(&request).await,
            }
        } else {
            store.claim(&request).await
        };
        for _ in 0..self.random.below(4) {
            if !matches!(claimed, Ok(Claimed::InProgress { .. })) {
                break;
            }
            self.pause(20).await;
            claimed = self.store().claim(&request).await;
        }
        if let Ok(Claimed::Acquired(hold)) = claimed {
            self.run(&request, &hold).await;
        }
    }

    fn request(&mut self, key: u64) -> ClaimRequest {
        let id = self.scene.id(key);
        let scope = ScopeId::from_bytes([0; 16]);
        let print = u8::from(self.random.one_in(8));
        let print = Fingerprint::from_bytes([print; 32]);
        let mut request = ClaimRequest::new(id, scope, print, Owner::random().unwrap());
        request.lease = self.scene.plan.lease;
        request.retention = self.scene.retention(key);
        if self.random.one_in(10) {
            request.lapse = Lapse::Seal;
        }
        request
    }

    /// As after a lost answer: the same owner asks again, gives back what it may have, or
    /// makes use of it, whatever its attempt.
    async fn settle_doubtful(&mut self, request: &ClaimRequest) {
        match self.random.below(3) {
            0 => drop(self.store().release(&request.hold(1)).await),
            1 => self.complete(request, &request.hold(1)).await,
            _ => {
                if let Ok(Claimed::Acquired(hold)) = self.store().claim(request).await {
                    self.complete(request, &hold).await;
                }
            }
        }
    }

    async fn run(&mut self, request: &ClaimRequest, hold: &Hold) {
        let lease = request.lease;
        match self.random.below(100) {
            0..30 => {
                self.pause(10).await;
                self.complete(request, hold).await;
            }
            30..42 => {
                for _ in 0..self.random.below(4) + 1 {
                    sleep(lease / 2).await;
                    let store = self.store();
                    let renewed = store.extend(hold, lease, request.retention).await;
                    if let Ok(Ownership::Lost) = renewed {
                        return;
                    }
                }
                self.complete(request, hold).await;
            }
            42..62 => {
                sleep(lease).await;
                self.pause(lease.as_millis() as u64).await;
                self.end_late(request, hold).await;
            }
            62..72 => self.fail(request, hold).await,
            72..82 => {
                self.pause(5).await;
                let _ = self.store().release(hold).await;
            }
            82..88 => {
                self.pause(60).await;
                if let Ok(Claimed::Acquired(hold)) = self.store().claim(request).await {
                    self.complete(request, &hold).await;
                }
            }
            88..95 => {
                let (store, record) = (self.store(), self.record());
                let complete = store.complete(hold, &record, request.retention);
                if self.cut(complete).await.is_none() {
                    self.complete_with(request, hold, &record).await;
                }
            }
            // Its process died.
            _ => {}
        }
    }

    /// What a run does that does not know that its lease is over.
    async fn end_late(&mut self, request: &ClaimRequest, hold: &Hold) {
        let store = self.store();
        match self.random.below(10) {
            0..2 => drop(store.release(hold).await),
            2..4 => self.fail(request, hold).await,
            4..6 => {
                let (lease, retention) = (request.lease, request.retention);
                let _ = store.extend(hold, lease, retention).await;
                self.complete(request, hold).await;
            }
            _ => self.complete(request, hold).await,
        }
    }

    async fn fail(&mut self, request: &ClaimRequest, hold: &Hold) {
        let seal = self.random.one_in(3);
        let failed = self.store().fail(hold, seal, request.retention).await;
        if seal && matches!(failed, Ok(Ownership::Held)) && self.random.one_in(3) {
            self.pause(20).await;
            self.resolve(request.id, request.retention).await;
        }
    }

    async fn complete(&mut self, request: &ClaimRequest, hold: &Hold) {
        let record = self.record();
        self.complete_with(request, hold, &record).await;
    }

    async fn complete_with(&mut self, request: &ClaimRequest, hold: &Hold, record: &Record) {
        let retention = request.retention;
        let completed = self.store().complete(hold, record, retention).await;
        if !matches!(completed, Ok(Completion::Stored)) || !self.random.one_in(3) {
            return;
        }
        let is_short = retention < self.scene.plan.lease * 3;
        if is_short && self.random.one_in(2) {
            // Perhaps nobody has come since the record expired.
            sleep(retention).await;
            self.pause(4).await;
        }
        let other = self.record();
        let again = if self.random.one_in(2) {
            record
        } else {
            &other
        };
        let _ = self.store().complete(hold, again, retention).await;
    }

    /// Unlike any other, and now and then a long one.
    fn record(&mut self) -> Record {
        let len = if self.random.one_in(4) { 3000 } else { 0 };
        let body = format!("{:016x}{}", self.random.next(), "x".repeat(len));
        Record::new(&Response::new(body))
    }
}

/// `SplitMix64`.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
}

fn any_bytes() -> [u8; 16] {
    *Owner::random().unwrap().as_bytes()
}
