-- Where records are kept: layout 1 of tower-idempotency.
CREATE TABLE IF NOT EXISTS {table} (
  id          bytea       NOT NULL CONSTRAINT {name}_pkey PRIMARY KEY,
  fingerprint bytea       NOT NULL,
  owner       bytea       NOT NULL,
  attempt     bigint      NOT NULL,
  state       smallint    NOT NULL,
  seals       boolean     NOT NULL,
  lease_until timestamptz NOT NULL,
  created_at  timestamptz NOT NULL,
  expires_at  timestamptz NOT NULL,
  purge_after timestamptz NOT NULL,
  record      bytea,
  CONSTRAINT {name}_id CHECK (octet_length(id) = 32),
  CONSTRAINT {name}_fingerprint CHECK (octet_length(fingerprint) = 32),
  CONSTRAINT {name}_owner CHECK (octet_length(owner) = 16),
  CONSTRAINT {name}_attempt CHECK (attempt > 0),
  CONSTRAINT {name}_state CHECK (state BETWEEN 0 AND 3),
  CONSTRAINT {name}_record CHECK ((state = 1) = (record IS NOT NULL))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

-- Answers do not compress twice, and what is not needed of a row is not read.
ALTER TABLE {table} ALTER COLUMN record SET STORAGE EXTERNAL;

CREATE INDEX IF NOT EXISTS {name}_purge ON {table} (purge_after);

COMMENT ON TABLE {table} IS 'tower-idempotency 1';
COMMENT ON COLUMN {table}.id IS 'SHA-256 of namespace, scope and key';
COMMENT ON COLUMN {table}.fingerprint IS 'SHA-256 of the request';
COMMENT ON COLUMN {table}.owner IS 'drawn at random by every claim';
COMMENT ON COLUMN {table}.attempt IS 'counts the runs of this request';
COMMENT ON COLUMN {table}.state IS '0 running, 1 completed, 2 failed, 3 sealed';
COMMENT ON COLUMN {table}.seals IS 'whether the end of the lease seals the key';
COMMENT ON COLUMN {table}.lease_until IS 'end of the latest lease';
COMMENT ON COLUMN {table}.created_at IS 'first claim of this key';
COMMENT ON COLUMN {table}.expires_at IS 'from then on the row counts as absent';
COMMENT ON COLUMN {table}.purge_after IS 'expires_at within an hour, for the index alone';
COMMENT ON COLUMN {table}.record IS 'the answer of a completed run';
