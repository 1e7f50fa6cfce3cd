-- What most claims come to: nothing is there yet, or something is in the way. That is only
-- read, neither locked nor written.
-- $1 id, $2 fingerprint, $3 owner, $4 lease (ms), $5 lease and retention (ms), $6 seals
-- -> verdict, attempt, microseconds left of the lease, record; or no row: lost a race, run again.
-- Verdicts: 0 acquired, and those of a read.
WITH seen AS MATERIALIZED (
  {read}
), born AS (
  INSERT INTO {table} (id, fingerprint, owner, attempt, state, seals,
                       lease_until, created_at, expires_at, purge_after)
  SELECT $1, $2, $3, 1, 0, $6, {until:$4}, clock.now, {until:$5}, {until:$5}
    FROM (SELECT clock_timestamp() AS now) clock
   WHERE NOT EXISTS (SELECT FROM seen)
  ON CONFLICT (id) DO NOTHING
  RETURNING attempt
)
SELECT 0::bigint AS verdict, attempt, 0::bigint AS lease_left, NULL::bytea AS record FROM born
UNION ALL
SELECT verdict, attempt, lease_left, record FROM seen
