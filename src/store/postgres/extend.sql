-- $1 id, $2 owner, $3 lease (ms), $4 lease and retention (ms)
-- -> 1 renewed, 2 locked; or no row: not the owner.
WITH clock AS MATERIALIZED (
  SELECT clock_timestamp() AS now
), locked AS MATERIALIZED (
  -- Never waits: an open transaction that fences its run keeps the row locked.
  SELECT t.id
    FROM {table} t
   WHERE t.id = $1 AND t.owner = $2
     FOR NO KEY UPDATE SKIP LOCKED
), renewed AS (
  UPDATE {table} t
     SET lease_until = {until:$3},
         expires_at = greatest(t.expires_at, {until:$4}),
         purge_after = {coarse:$4}
    FROM locked, clock
   WHERE t.id = locked.id AND {mine}
  RETURNING 1
)
SELECT 1::bigint AS verdict FROM renewed
UNION ALL
SELECT 2 FROM {table} t, clock WHERE {mine} AND NOT EXISTS (SELECT FROM locked)
