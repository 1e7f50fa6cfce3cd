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

/// Whether enough replicas have a write, or why that is not known.
type Replicated = Result<(), BoxError>;

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    fn call(&self, script: &'static Script, id: &RecordId, room: usize) -> Call {
        Call::new(script, &self.keys, id, room)
    }

    async fn read(&self, call: Call) -> Result<Reply, StoreError> {
        Reply::new(call.send(&self.connection).await.map_err(store_error)?)
    }

    /// A write, and whether it is on as many replicas as it has to be.
    async fn try_write(&self, call: &Call) -> Result<(Reply, Replicated), StoreError> {
        let Some(acks) = &self.acks else {
            let value = call.send(&self.connection).await.map_err(store_error)?;
            return Ok((Reply::new(value)?, Ok(())));
        };
        let sent = call.send_and_count(acks, &self.connection).await;
        let (value, replicas) = sent.map_err(store_error)?;
        let replicated = match replicas {
            Ok(replicas) if replicas >= u64::from(acks.replicas) => Ok(()),
            Ok(replicas) => Err(format!(
                "{replicas} replicas have acknowledged the write, where {} have to",
                acks.replicas
            )
            .into()),
            Err(error) => Err(error.into()),
        };
        Ok((Reply::new(value)?, replicated))
    }

    /// The same where the caller is to ask again: what was written stands.
    async fn write(&self, call: Call) -> Result<Reply, StoreError> {
        let (reply, replicated) = self.try_write(&call).await?;
        match replicated {
            Ok(()) => Ok(reply),
            Err(error) => Err(StoreError::new(StoreErrorKind::Ambiguous, error)),
        }
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
        let (reply, replicated) = self.try_write(&self.claim_call(request, longest)).await?;
        let attempt = match reply {
            Reply(Value::Int(0)) => return Ok(Ok(Claimed::Mismatch)),
            Reply(Value::Int(attempt)) => u64::try_from(attempt).map_err(|_| unexpected())?,
            other => return other.bytes().and_then(Stored::read).map(Err),
        };
        match replicated {
            Ok(()) => Ok(Ok(Claimed::Acquired(request.hold(attempt)))),
            Err(error) => Err(self.give_back(request, error).await),
        }
    }

    /// A claim that a fail-over would forget is none.
    async fn give_back(&self, request: &ClaimRequest, error: BoxError) -> StoreError {
        match self.release(&request.hold(1)).await {
            Ok(_) => StoreError::new(StoreErrorKind::NotApplied, error),
            Err(_) => StoreError::new(StoreErrorKind::Ambiguous, error),
        }
    }

    /// The answer to a head that came without it, by a plain read: a script would copy it
    /// twice more. `None` where the server has another record by now, or where a replica
    /// was read that has none yet.
    async fn fetch(&self, id: &RecordId, head: &Stored) -> Result<Option<Stored>, StoreError> {
        let mut cmd = Cmd::new();
        cmd.write_arg(b"GET");
        self.keys.write(id, &mut cmd);
        let read = cmd.query_async(&mut self.connection()).await;
        let Value::BulkString(bytes) = read.map_err(store_error)? else {
            return Ok(None);
        };
        let stored = Stored::read(bytes)?;
        Ok(Some(stored).filter(|stored| stored.is_completed() && stored.is_of_same_run(head)))
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
        if let Some(whole) = self.fetch(&request.id, &found).await? {
            return whole.completed();
        }
        match self.try_claim(request, usize::MAX).await? {
            Ok(claimed) => Ok(claimed),
            Err(found) => found.in_the_way(),
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
        self.write(call).await?.ownership()
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
            .millis(retention);
        Ok(match self.write(call).await?.int()? {
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
        self.write(call).await?.ownership()
    }

    async fn release(&self, hold: &Hold) -> Result<Ownership, StoreError> {
        let call = self.call(&script::RELEASE, &hold.id, 16);
        // A release that a fail-over forgets costs a lease, and nothing runs twice.
        let reply = self.read(call.bytes(hold.owner.as_bytes())).await?;
        reply.ownership()
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<Snapshot>, StoreError> {
        for longest in [self.inline_limit, usize::MAX] {
            let call = self.call(&script::LOOKUP, id, 16).number(longest as u64);
            let reply = self.read(call).await?;
            if reply.is_nil() {
                return Ok(None);
            }
            let (record, left) = reply.pair()?;
            let mut stored = Stored::read(record.bytes()?)?;
            if stored.lacks_answer() {
                match self.fetch(id, &stored).await? {
                    Some(whole) => stored = whole,
                    None => continue,
                }
            }
            return stored.snapshot(left.int()?.try_into().ok()).map(Some);
        }
        Err(unexpected())
    }

    async fn forget(&self, id: &RecordId) -> Result<Forgot, StoreError> {
        let reply = self.write(self.call(&script::FORGET, id, 0)).await?;
        Ok(match reply.int()? {
            0 => Forgot::Absent,
            1 => Forgot::Live,
            2 => Forgot::Forgotten,
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
        Ok(self.write(call).await?.int()? == 1)
    }
}
