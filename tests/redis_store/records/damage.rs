//! What is no record, or none of this version, is said to be corrupt, and never a reason to
//! run. Whoever looks after the server can remove it.

use http::StatusCode;
use tower_idempotency::store::{
    ClaimRequest, Claimed, Completion, Forgot, KeyStore, Ownership, StoreError, StoreErrorKind,
};
use tower_idempotency::{IdempotencyKey, IdempotencyLayer, RecordId, Scope, scope_fn};

use crate::support::{counting, post, send};
use crate::{
    HEAD_LEN, LEASE, Place, RETENTION, fresh_record, misuse_of, refusal, request, retry_of,
};

const ATTEMPT_AT: usize = 48;
const STATE_AT: usize = 64;
const OUTLIVES_AT: usize = 65;
const STATES: [u8; 5] = *b"tsFSC";

/// A record in that state, which `request` has run.
fn valid(request: &ClaimRequest, state: u8) -> Vec<u8> {
    let mut value = [
        &request.fingerprint.as_bytes()[..],
        request.owner.as_bytes(),
        b"0000000000000001",
        &[state],
        b"0000000000590000",
    ]
    .concat();
    if state == b'C' {
        value.extend_from_slice(fresh_record().as_bytes());
    }
    value
}

/// Not decimal digits, though some readers of numbers would take them for a number.
const NO_DIGITS: [&[u8; 16]; 12] = [
    b"000000000000000x",
    b"xxxxxxxxxxxxxxxx",
    b"                ",
    b"               1",
    b"1               ",
    b"-000000000000001",
    b"+000000000000001",
    b"00000000000001.5",
    b"00000000000001e3",
    b"0x00000000000001",
    b"             inf",
    b"000000000000001\0",
];

/// Strings that do not begin as a record does.
fn no_heads(request: &ClaimRequest) -> Vec<(String, Vec<u8>)> {
    let mut values = vec![
        ("one byte".to_owned(), b"x".to_vec()),
        ("text".to_owned(), b"somebody else keeps this here".to_vec()),
        ("long text".to_owned(), b"0123456789".repeat(20)),
    ];
    for state in STATES {
        let whole = valid(request, state);
        let shown = char::from(state);
        for len in [HEAD_LEN - 1, STATE_AT + 1, STATE_AT, ATTEMPT_AT, 32] {
            values.push((format!("{shown} cut after {len}"), whole[..len].to_vec()));
        }
        for digits in NO_DIGITS {
            for at in [ATTEMPT_AT, OUTLIVES_AT] {
                let mut value = whole.clone();
                value[at..at + 16].copy_from_slice(digits);
                let digits = String::from_utf8_lossy(digits);
                values.push((format!("{shown} with {digits:?} at {at}"), value));
            }
        }
    }
    for state in *b"XcTf \0\xff" {
        let value = valid(request, state);
        values.push((format!("state {:?}", char::from(state)), value));
    }
    values
}

fn kind<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> Result<String, StoreErrorKind> {
    let answer = answer.map(|answer| format!("{answer:?}"));
    answer.map_err(|error| error.kind())
}

/// What every method but `forget` says of the key of `run`.
async fn said_of(place: &Place, run: &ClaimRequest) -> Vec<(&'static str, Said)> {
    let (store, hold, record) = (&place.store, run.hold(1), fresh_record());
    let stranger = retry_of(run).hold(1);
    vec![
        ("claim by another", kind(store.claim(&retry_of(run)).await)),
        ("claim by the owner", kind(store.claim(run).await)),
        (
            "claim of another request",
            kind(store.claim(&misuse_of(run)).await),
        ),
        ("lookup", kind(store.lookup(&run.id).await)),
        ("extend", kind(store.extend(&hold, LEASE, RETENTION).await)),
        ("fail", kind(store.fail(&hold, false, RETENTION).await)),
        ("seal", kind(store.fail(&hold, true, RETENTION).await)),
        ("release", kind(store.release(&hold).await)),
        (
            "complete",
            kind(store.complete(&hold, &record, RETENTION).await),
        ),
        (
            "complete by another",
            kind(store.complete(&stranger, &record, RETENTION).await),
        ),
        (
            "resolve",
            kind(store.resolve(&run.id, &record, RETENTION).await),
        ),
    ]
}

type Said = Result<String, StoreErrorKind>;

#[tokio::test]
async fn what_does_not_begin_as_a_record_is_corrupt_to_every_method() {
    let place = Place::new().await;
    let run = request();
    let mut wrong = Vec::new();
    for (what, value) in no_heads(&run) {
        place.put(&run.id, &value).await;
        let mut said = said_of(&place, &run).await;
        said.retain(|(_, said)| *said != Err(StoreErrorKind::Corrupt));
        if !said.is_empty() {
            wrong.push(format!("{what}: {said:?}"));
        }
        if place.raw(&run.id).await != Some(value) {
            wrong.push(format!("{what} is changed"));
        }
    }
    let count = wrong.len();
    wrong.truncate(40);
    assert_eq!(count, 0, "among others:\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_key_of_another_type_is_corrupt_to_every_method() {
    let place = Place::new().await;
    for (command, value) in [
        ("RPUSH", &["a list"][..]),
        ("SADD", &["a set"]),
        ("HSET", &["a", "hash"]),
        ("XADD", &["*", "a", "stream"]),
    ] {
        let run = request();
        let key = place.key(&run.id);
        place
            .command::<()>(redis::cmd(command).arg(key).arg(value))
            .await;
        let before: Vec<u8> = place.at("DUMP", &run.id).await;
        for (method, said) in said_of(&place, &run).await {
            assert_eq!(said, Err(StoreErrorKind::Corrupt), "{command}: {method}");
        }
        // Whoever put it there has to remove it.
        let forgot = place.store.forget(&run.id).await.unwrap_err();
        assert_eq!(forgot.kind(), StoreErrorKind::Corrupt, "{command}");
        let after: Vec<u8> = place.at("DUMP", &run.id).await;
        assert_eq!(after, before, "{command}");
    }
}

/// Its head is whole, so that its owner and its request are known.
#[tokio::test]
async fn an_answer_that_is_damaged_is_corrupt_and_stays_until_it_is_forgotten() {
    let run = request();
    let whole = valid(&run, b'C');
    let damaged = |at: usize, byte: u8| {
        let mut value = whole.clone();
        value[HEAD_LEN + at] = byte;
        value
    };
    let values = [
        ("no answer", whole[..HEAD_LEN].to_vec()),
        ("one byte of it", whole[..HEAD_LEN + 1].to_vec()),
        ("cut within its head", whole[..HEAD_LEN + 21].to_vec()),
        ("cut within its body", whole[..whole.len() - 1].to_vec()),
        ("longer", [&whole[..], b"x"].concat()),
        ("another magic", damaged(0, 0x1e)),
        ("format version 2", damaged(1, 2)),
        ("format version 0", damaged(1, 0)),
        ("an unknown flag", damaged(2, 0x80)),
    ];
    let corrupt = || Err(StoreErrorKind::Corrupt);
    let lost = || Ok(format!("{:?}", Ownership::Lost));
    for limit in [0, 1000] {
        let place = Place::new().await.with(|store| store.inline_limit(limit));
        for (what, value) in &values {
            place.put(&run.id, value).await;
            let expected = [
                ("claim by another", corrupt()),
                ("claim by the owner", corrupt()),
                (
                    "claim of another request",
                    Ok(format!("{:?}", Claimed::Mismatch)),
                ),
                ("lookup", corrupt()),
                ("extend", lost()),
                ("fail", lost()),
                ("seal", lost()),
                ("release", lost()),
                ("complete", Ok(format!("{:?}", Completion::Stored))),
                (
                    "complete by another",
                    Ok(format!("{:?}", Completion::NotOwner)),
                ),
                ("resolve", Ok("false".to_owned())),
            ];
            assert_eq!(said_of(&place, &run).await, expected, "{what}");
            assert_eq!(place.raw(&run.id).await.unwrap(), *value, "{what}");
            assert_eq!(
                place.store.forget(&run.id).await.unwrap(),
                Forgot::Forgotten
            );
            assert_eq!(place.store.lookup(&run.id).await.unwrap(), None);
        }
    }
}

#[tokio::test]
async fn what_is_no_record_can_be_forgotten() {
    let place = Place::new().await;
    let run = request();
    for (what, value) in no_heads(&run) {
        // As far as can be told, these are runs whose lease has not ended.
        if value
            .get(STATE_AT)
            .is_some_and(|state| b"ts".contains(state))
        {
            continue;
        }
        place.put(&run.id, &value).await;
        let forgot = place.store.forget(&run.id).await.unwrap();
        assert_eq!(forgot, Forgot::Forgotten, "{what}");
        assert_eq!(place.raw(&run.id).await, None, "{what}");
    }
}

/// The end of a lease is told by the expiry of its key.
#[tokio::test]
async fn a_record_whose_expiry_was_taken_away_is_corrupt_unless_it_has_its_answer() {
    let place = Place::new().await;
    for state in STATES {
        let run = request();
        place.put(&run.id, &valid(&run, state)).await;
        assert!(place.at::<bool>("PERSIST", &run.id).await);
        let claimed = place.store.claim(&retry_of(&run)).await;
        if state == b'C' {
            assert!(
                matches!(claimed, Ok(Claimed::Completed { .. })),
                "{claimed:?}"
            );
        } else {
            let kind = claimed.unwrap_err().kind();
            assert_eq!(kind, StoreErrorKind::Corrupt, "{}", char::from(state));
            assert_eq!(refusal(&place.store, &run).await, StoreErrorKind::Corrupt);
        }
        assert_eq!(
            place.raw(&run.id).await.unwrap()[..48],
            valid(&run, state)[..48]
        );
        assert_eq!(
            place.store.forget(&run.id).await.unwrap(),
            Forgot::Forgotten
        );
    }
}

#[tokio::test]
async fn a_request_whose_record_is_damaged_is_refused_and_never_runs() {
    let place = Place::new().await;
    let scope = scope_fn(|_: &http::request::Parts| Some(Scope::new("account 7")));
    let layer = IdempotencyLayer::new(place.store.clone(), scope);
    let (service, runs) = counting(&layer);
    let id = |key: &str| {
        let key = IdempotencyKey::new(key).unwrap();
        RecordId::new("", &Scope::new("account 7"), &key)
    };
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 6] = [
        ("cut in its head", |value| value.truncate(80)),
        ("cut in its answer", |value| value.truncate(value.len() - 1)),
        ("of a later format", |value| value[HEAD_LEN + 1] = 2),
        ("in an unknown state", |value| value[STATE_AT] = b'X'),
        ("no digits", |value| value[ATTEMPT_AT] = b'x'),
        ("foreign", |value| *value = b"foreign".to_vec()),
    ];
    for (number, (what, damage)) in damages.iter().enumerate() {
        let key = format!("key-{number}");
        let id = id(&key);
        let first = send(&service, post(&key, "charge 5")).await;
        assert_eq!(first.status, StatusCode::CREATED);
        let mut value = place.raw(&id).await.unwrap();
        damage(&mut value);
        place.put(&id, &value).await;
        for _ in 0..2 {
            let refused = send(&service, post(&key, "charge 5")).await;
            assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR, "{what}");
            assert_eq!(
                refused.code().as_deref(),
                Some("record-unreadable"),
                "{what}"
            );
            assert!(!refused.is_replay());
        }
        assert_eq!(place.raw(&id).await.unwrap(), value, "{what}");
        assert_eq!(runs.get(), number + 1, "{what}");
        assert_eq!(place.store.forget(&id).await.unwrap(), Forgot::Forgotten);
    }
    let anew = send(&service, post("key-0", "charge 5")).await;
    assert_eq!(anew.text(), format!("run {}", damages.len() + 1));
}
