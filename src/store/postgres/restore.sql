-- For a completion that found no run of its own.
-- $1 id, $2 owner, $3 record, $4 retention (ms), $5 fingerprint, $6 attempt, $7 seals
-- -> 0 not the owner, 1 stored before, 2 restored, 3 its run is there; or no row: lost a race.
WITH clock AS MATERIALIZED (
  SELECT clock_timestamp() AS now
), seen AS MATERIALIZED (
  SELECT CASE WHEN t.owner <> $2 THEN 0 WHEN t.state = 1 THEN 1 WHEN t.state = 0 THEN 3
              ELSE 0 END AS verdict
    FROM {table} t, clock
   WHERE t.id = $1 AND t.expires_at > clock.now
), restored AS (
  INSERT INTO {table} AS t (id, fingerprint, owner, attempt, state, seals,
                            lease_until, created_at, expires_at, purge_after, record)
  SELECT $1, $5, $2, $6, 1, $7, clock.now, clock.now, {until:$4}, {until:$4}, $3
    FROM clock
   WHERE NOT EXISTS (SELECT FROM seen)
  ON CONFLICT (id) DO UPDATE
     SET fingerprint = excluded.fingerprint, owner = excluded.owner,
         attempt = excluded.attempt, state = excluded.state, seals = excluded.seals,
         lease_until = excluded.lease_until, created_at = excluded.created_at,
         expires_at = excluded.expires_at, purge_after = excluded.purge_after,
         record = excluded.record
   WHERE t.expires_at <= clock_timestamp()
  RETURNING 1
)
SELECT 2::bigint AS verdict FROM restored
UNION ALL
SELECT verdict FROM seen
