-- $1 at most -> how many. The rows are found by the index and removed by their place: `id IN (…)` would
-- read the whole table.
WITH purged AS (
  DELETE FROM {table}
   WHERE ctid = ANY (ARRAY(
           SELECT t.ctid
             FROM {table} t
            WHERE t.purge_after <= (SELECT clock_timestamp())
              AND t.expires_at <= clock_timestamp()
            ORDER BY t.purge_after
            LIMIT $1
              FOR UPDATE SKIP LOCKED))
     AND expires_at <= clock_timestamp()
  RETURNING 1
)
SELECT count(*) AS verdict FROM purged
