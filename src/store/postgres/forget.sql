-- $1 id -> 0 absent, 1 forgotten, 2 live, 3 locked; or no row: absent, or lost a race
WITH clock AS MATERIALIZED (
  SELECT clock_timestamp() AS now
), seen AS MATERIALIZED (
  SELECT {live} AS is_live
    FROM {table} t, clock
   WHERE t.id = $1
), locked AS MATERIALIZED (
  SELECT t.id
    FROM {table} t
   WHERE t.id = $1 AND (SELECT NOT is_live FROM seen)
     FOR UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM {table} t
   USING locked, clock
   WHERE t.id = locked.id AND NOT {live}
  RETURNING CASE WHEN t.expires_at > clock.now THEN 1 ELSE 0 END AS verdict
)
SELECT verdict::bigint FROM gone
UNION ALL
SELECT CASE WHEN is_live THEN 2 ELSE 3 END
  FROM seen
 WHERE is_live OR NOT EXISTS (SELECT FROM gone)
