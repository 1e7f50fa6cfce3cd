-- In a transaction that may not have fenced its run, and goes on. Nothing where none is open,
-- for then it would be one of its own: a transaction that has locked or written anything has
-- a number.
-- $1 id, $2 owner, $3 record, $4 retention (ms)
WITH locked AS MATERIALIZED (
  SELECT t.id
    FROM {table} t
   WHERE t.id = $1 AND t.owner = $2
     AND (SELECT pg_current_xact_id_if_assigned() IS NOT NULL)
     FOR UPDATE
)
UPDATE {table} t
   SET state = 1, record = $3, expires_at = {until:$4}, purge_after = {coarse:$4}
  FROM locked, (SELECT clock_timestamp() AS now) clock
 WHERE t.id = locked.id AND {mine}
RETURNING 1::bigint AS verdict
