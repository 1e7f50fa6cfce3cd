CREATE TABLE IF NOT EXISTS idempotency_record (
  -- SHA-256 of namespace, scope and key: what the client sent is not kept.
  id          BLOB    NOT NULL UNIQUE CHECK (length(id) = 32),
  fingerprint BLOB    NOT NULL CHECK (length(fingerprint) = 32),
  owner       BLOB    NOT NULL CHECK (length(owner) = 16),
  attempt     INTEGER NOT NULL CHECK (attempt > 0),
  -- 0 running, 1 completed, 2 failed, 3 sealed
  state       INTEGER NOT NULL CHECK (state BETWEEN 0 AND 3),
  -- 1: sealed once the lease ends
  seals       INTEGER NOT NULL CHECK (seals IN (0, 1)),
  -- These four are milliseconds since 1970.
  lease_until INTEGER NOT NULL,
  created_at  INTEGER NOT NULL,
  expires_at  INTEGER NOT NULL,
  -- About the same, indexed for the purge: following every renewal would cost an index entry.
  purge_after INTEGER NOT NULL,
  -- Last, so that no other column has to be looked for behind it.
  record      BLOB,
  CHECK ((state = 1) = (record IS NOT NULL))
) STRICT;

CREATE INDEX IF NOT EXISTS idempotency_record_purge ON idempotency_record (purge_after);

CREATE TABLE IF NOT EXISTS idempotency_record_layout (version INTEGER NOT NULL) STRICT;

INSERT INTO idempotency_record_layout (version)
SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM idempotency_record_layout);
