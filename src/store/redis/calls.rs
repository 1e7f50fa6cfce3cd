//! Every call of the store: one script, and what its reply means.

use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Cmd, RedisWrite, Value};

use super::RedisStore;
use super::fault::store_error;
use super::reply::{Reply, unexpected};
use super::script::{self, Call, Script};
use super::stored::{self, Stored};
use crate::model::claim::{ClaimRequest, Claimed, Completion, Forgot, Hold, Ownership, Snapshot};
use crate::model::error::{BoxError, StoreError, StoreErrorKind};
use crate::model::record::Record;
use crate::model::scope::RecordId;
use crate::store::KeyStore;

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    fn call(&self, script: &'static Script, id: &RecordId, room: usize) -> Call {
        Call::new(script, &self.keys, id, room)
    }

    async fn send(&self, call: &Call) -> Result<Reply, StoreError> {
        let sent = call.send(&self.connection).await;
        Reply::new(sent.map_err(store_error::<C>)?)
    }

    /// A write that is to be on replicas, where that is asked for. What too few of them have
    /// stands all the same: the caller is to ask again.
    async fn write(&self, call: &Call) -> Result<Reply, StoreError> {
        let Some(acks) = &self.acks else {
            return self.send(call).await;
        };
        let sent = call.send_and_count(acks, &self.connection).await;
        let (value, replicas) = sent.map_err(store_error::<C>)?;
        let reply = Reply::new(value)?;
        let shortage: BoxError = match replicas {
            _ if reply.wrote_nothing() => return Ok(reply),
            Ok(replicas) if replicas >= u64::from(acks.replicas) => return Ok(reply),
            Ok(replicas) => format!(
                "{replicas} replicas have acknowledged the write, where {} have to",
                acks.replicas
            )
            .into(),
            Err(error) => error.into(),
        };
        Err(StoreError::new(StoreErrorKind::Ambiguous, shortage))
    }

    fn claim_call(&self, request: &ClaimRequest, longest: usize) -> Call {
        self.call(&script::CLAIM, &request.id, 256)
            .bytes(&stored::claimed(request))
            .millis(request.lease)
            .millis(request.lease.saturating_add(request.retention))
            .number(longest as u64)
    }

    /// What is in the way may lack its answer.
    async fn try_claim(
        &self,
        request: &ClaimRequest,
        longest: usize,
    ) -> Result<Result<Claimed, Stored>, StoreError> {
        match self.write(&self.claim_call(request, longest)).await? {
            Reply(Value::Int(0)) => Ok(Ok(Claimed::Mismatch)),
            Reply(Value::Int(attempt)) => {
                let attempt = attempt.try_into().map_err(|_| unexpected())?;
                Ok(Ok(Claimed::Acquired(request.hold(attempt))))
            }
            record => record.bytes().and_then(Stored::read).map(Err),
        }
    }

    /// The answer to a head that came without it, by a plain read: a script would copy it
    /// twice more. `None` where that gives another record or none, as it may when a node is
    /// asked that is not the primary: then a script has to tell.
    async fn fetch(&self, id: &RecordId, head: &Stored) -> Option<Stored> {
        let mut cmd = Cmd::new();
        cmd.write_arg(b"GET");
        self.keys.write(id, &mut cmd);
        match cmd.query_async(&mut self.connection()).await {
            Ok(Value::BulkString(bytes)) => Stored::read(bytes)
                .ok()
                .filter(|stored| stored.is_completed() && stored.is_of_same_run(head)),
            _ => None,
        }
    }
}

impl<C> KeyStore for RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    async fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let found = match self.try_claim(request, self.inline_limit).await? {
            Ok(claimed) => return Ok(claimed),
            Err(found) if found.lacks_answer() => found,
            Err(found) => return found.in_the_way(),
        };
        if let Some(whole) = self.fetch(&request.id, &found).await {
            return whole.completed();
        }
        match self.try_claim(request, usize::MAX).await {
            Ok(Ok(claimed)) => Ok(claimed),
            Ok(Err(found)) => found.in_the_way(),
            // No leave to run unprotected: there was an answer.
            Err(error) if error.kind() == StoreErrorKind::NotApplied => {
                Err(StoreError::new(StoreErrorKind::Ambiguous, error))
            }
            Err(error) => Err(error),
        }
    }

    async fn extend(
        &self,
        hold: &Hold,
        lease: Duration,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let call = self
            .call(&script::EXTEND, &hold.id, 64)
            .bytes(hold.owner.as_bytes())
            .millis(lease)
            .millis(lease.saturating_add(retention));
        self.write(&call).await?.ownership()
    }

    async fn complete(
        &self,
        hold: &Hold,
        record: &Record,
        retention: Duration,
    ) -> Result<Completion, StoreError> {
        let len = stored::completed_len(record);
        let call = self
            .call(&script::COMPLETE, &hold.id, len + 64)
            .bytes(hold.owner.as_bytes())
            .built(len, |to| stored::put_completed(hold, record, to))
            .millis(retention)
            // That a run is done is never lost for want of room.
            .number(record.is_omitted().into());
        Ok(match self.write(&call).await?.int()? {
            0 => Completion::NotOwner,
            1 => Completion::Stored,
            2 => Completion::Restored,
            _ => return Err(unexpected()),
        })
    }

    async fn fail(
        &self,
        hold: &Hold,
        seal: bool,
        retention: Duration,
    ) -> Result<Ownership, StoreError> {
        let call = self
            .call(&script::FAIL, &hold.id, 64)
            .bytes(hold.owner.as_bytes())
            .bytes(&stored::ended(seal))
            .millis(retention);
        self.write(&call).await?.ownership()
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        let call = self
            .call(&script::RELEASE, &hold.id, 16)
            .bytes(hold.owner.as_bytes());
        // A release that a fail-over forgets costs a lease, and nothing runs twice.
        self.send(&call).await?.ownership()
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        for longest in [self.inline_limit, usize::MAX] {
            let call = self.call(&script::LOOKUP, id, 16).number(longest as u64);
            let reply = self.send(&call).await?;
            if reply.is_nil() {
                return Ok(None);
            }
            let (record, left) = reply.pair()?;
            let mut stored = Stored::read(record.bytes()?)?;
            if stored.lacks_answer() {
                match self.fetch(id, &stored).await {
                    Some(whole) => stored = whole,
                    None => continue,
                }
            }
            return stored.snapshot(left.int()?.try_into().ok()).map(Some);
        }
        Err(unexpected())
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        let call = self.call(&script::FORGET, id, 0);
        Ok(match self.write(&call).await?.int()? {
            1 => Forgot::Forgotten,
            0 => Forgot::Absent,
            -2 => Forgot::Live,
            _ => return Err(unexpected()),
        })
    }

    async fn resolve(
        &self,
        id: &RecordId,
        record: &Record,
        retention: Duration,
    ) -> Result<bool, StoreError> {
        let len = stored::completed_len(record);
        let call = self
            .call(&script::RESOLVE, id, len + 32)
            .built(len, |to| stored::put_answer(record, to))
            .millis(retention);
        Ok(self.write(&call).await?.int()? == 1)
    }
}
