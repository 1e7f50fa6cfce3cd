//! The layout of a record on the server, byte by byte: other versions of this crate, and
//! operators, read it.

use tower_idempotency::store::{
    Claimed, Completion, Fingerprint, Hold, KeyStore, Owner, Ownership, Phase, Record, RecordId,
};

use super::assert_is;
use crate::{LEASE, Place, RETENTION, fresh_record, request, retry_of, sealing};

/// `HTTP/1.1 201`, `location: /payments/7`, the body `paid`, as stored in format version 1.
const ANSWER: &[u8] = b"\x1d\x01\x00\x0b\x00\xc9\
    \x00\x00\x01\x8b\xcf\xe5\x68\x00\
    \x00\x00\x00\x00\x00\x00\x00\x04\
    \x00\x01\x00\x00\x08\x00\x00\x00\x0blocation/payments/7\
    \x00\x00\x00\x00paid";

fn answer() -> Record {
    Record::from_bytes(ANSWER.into()).unwrap()
}

/// Everything about it is known beforehand.
fn known() -> tower_idempotency::store::ClaimRequest {
    let mut known = request();
    known.fingerprint = Fingerprint::from_bytes([b'f'; 32]);
    known.owner = Owner::from_bytes([b'o'; 16]);
    known
}

const FINGERPRINT: &str = "ffffffffffffffffffffffffffffffff";
const OWNER: &str = "oooooooooooooooo";

fn stored(rest: &str, answer: &[u8]) -> Vec<u8> {
    [format!("{FINGERPRINT}{OWNER}{rest}").as_bytes(), answer].concat()
}

/// As a string, where there is no answer.
async fn head(place: &Place, id: &RecordId) -> String {
    String::from_utf8(place.raw(id).await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_record_is_stored_as_documented_in_every_state() {
    let place = Place::new().await;
    let run = known();
    let hold = place.acquire(&run).await;
    // Lease and retention end so many milliseconds apart.
    let expected = stored("0000000000000001t0000000000600000", b"");
    assert_eq!(place.raw(&run.id).await.unwrap(), expected, "running");
    let completed = place.store.complete(&hold, &answer(), RETENTION).await;
    assert_eq!(completed.unwrap(), Completion::Stored);
    let expected = stored("0000000000000001C0000000000000000", ANSWER);
    assert_eq!(place.raw(&run.id).await.unwrap(), expected, "completed");

    let run = sealing(known());
    let hold = place.acquire(&run).await;
    let expected = stored("0000000000000001s0000000000600000", b"");
    assert_eq!(
        place.raw(&run.id).await.unwrap(),
        expected,
        "running, to be sealed"
    );
    let failed = place.store.fail(&hold, false, RETENTION).await;
    assert_eq!(failed.unwrap(), Ownership::Held);
    let expected = "0000000000000001F";
    assert_eq!(head(&place, &run.id).await[48..65], *expected, "failed");
    let mut retry = known();
    (retry.id, retry.owner) = (run.id, Owner::from_bytes([b'p'; 16]));
    place.acquire(&retry).await;
    let expected = stored("0000000000000002t0000000000600000", b"");
    let expected = String::from_utf8(expected).unwrap().replace('o', "p");
    assert_eq!(head(&place, &run.id).await, expected, "running again");

    let run = known();
    let hold = place.acquire(&run).await;
    place.store.fail(&hold, true, RETENTION).await.unwrap();
    let expected = "0000000000000001S";
    assert_eq!(head(&place, &run.id).await[48..65], *expected, "sealed");
    assert!(
        place
            .store
            .resolve(&run.id, &answer(), RETENTION)
            .await
            .unwrap()
    );
    let expected = stored("0000000000000001C0000000000000000", ANSWER);
    assert_eq!(place.raw(&run.id).await.unwrap(), expected, "resolved");
}

#[tokio::test]
async fn a_completed_record_written_by_hand_is_replayed() {
    let place = Place::new().await;
    let run = known();
    let value = stored("0000000000000003C0000000000000000", ANSWER);
    place.put(&run.id, &value).await;
    let claimed = place.store.claim(&retry_of(&run)).await.unwrap();
    assert_is(&claimed, 3, &answer());
    let Claimed::Completed { record, .. } = claimed else {
        unreachable!("it was asserted to be completed");
    };
    assert_eq!(record.status(), 201);
    assert_eq!(record.version(), http::Version::HTTP_11);
    assert_eq!(record.headers().len(), 1);
    assert_eq!(record.headers()["location"], "/payments/7");
    assert_eq!(record.body(), "paid");
    assert_eq!(
        place.raw(&run.id).await.unwrap(),
        value,
        "a replay only reads"
    );
}

#[tokio::test]
async fn records_of_every_other_state_written_by_hand_are_what_they_say() {
    let place = Place::new().await;
    let cases = [
        // Written with 600 s to live: the lease ends in 10 s, or has ended.
        ("0000000000000007t0000000000590000", "running"),
        ("0000000000000007s0000000000590000", "running"),
        ("0000000000000007t0000000000700000", "free"),
        ("0000000000000007s0000000000700000", "sealed"),
        ("0000000000000007F0000000000590000", "free"),
        ("0000000000000007S0000000000590000", "sealed"),
    ];
    for (rest, what) in cases {
        let run = known();
        place.put(&run.id, &stored(rest, b"")).await;
        let seen = place.store.lookup(&run.id).await.unwrap().unwrap();
        assert_eq!((seen.attempt, seen.fingerprint), (7, run.fingerprint));
        let claimed = place.store.claim(&retry_of(&run)).await.unwrap();
        let fits = match (what, &claimed, &seen.phase) {
            (
                "running",
                Claimed::InProgress {
                    attempt: 7,
                    lease_left: told,
                },
                Phase::Running { lease_left },
            ) => [told, lease_left]
                .iter()
                .all(|left| left.as_millis().abs_diff(10_000) < 5_000),
            ("sealed", Claimed::Abandoned { attempt: 7 }, Phase::Sealed)
            | ("free", Claimed::Acquired(Hold { attempt: 8, .. }), Phase::Failed) => true,
            ("free", Claimed::Acquired(Hold { attempt: 8, .. }), Phase::Running { lease_left }) => {
                lease_left.is_zero()
            }
            _ => false,
        };
        assert!(fits, "{rest}: {claimed:?}, {:?}", seen.phase);
    }
}

/// The owner of a run may be another node by now, with the same hold.
#[tokio::test]
async fn a_run_written_by_hand_belongs_to_its_owner() {
    let place = Place::new().await;
    let run = known();
    let value = stored("0000000000000005t0000000000590000", b"");
    place.put(&run.id, &value).await;
    let hold = run.hold(5);
    let extended = place.store.extend(&hold, LEASE, RETENTION).await;
    assert_eq!(extended.unwrap(), Ownership::Held);
    let expected = stored("0000000000000005t0000000000600000", b"");
    assert_eq!(place.raw(&run.id).await.unwrap(), expected);
    let record = fresh_record();
    let completed = place.store.complete(&hold, &record, RETENTION).await;
    assert_eq!(completed.unwrap(), Completion::Stored);
    let expected = stored("0000000000000005C0000000000000000", record.as_bytes());
    assert_eq!(place.raw(&run.id).await.unwrap(), expected);
}
