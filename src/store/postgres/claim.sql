-- What most claims come to: nothing is there yet, or something is in the way. That is only
-- read, neither locked nor written.
-- $1 id, $2 fingerprint, $3 owner, $4 lease (ms), $5 lease and retention (ms), $6 seals
-- -> verdict, attempt, microseconds left of the lease, record; or no row: lost a race, run again.
-- Verdicts: 0 acquired, 1 mismatch, 2 completed, 3 in progress, 5 sealed, 6 no state,
-- 9 to be taken, perhaps.
WITH seen AS MATERIALIZED (
  SELECT CASE WHEN {free} THEN 9
              WHEN t.fingerprint <> $2 THEN 1
              WHEN t.state = 1 THEN 2
              WHEN t.state = 0 AND t.lease_until > clock.now THEN 3
              WHEN t.state = 0 THEN 9
              WHEN t.state = 3 THEN 5
              ELSE 6 END AS verdict,
         t.attempt, t.lease_until - clock.now AS lease_left, t.record
    FROM {table} t, (SELECT clock_timestamp() AS now) clock
   WHERE t.id = $1
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
SELECT verdict, attempt, {micros:lease_left}, CASE WHEN verdict = 2 THEN record END FROM seen
