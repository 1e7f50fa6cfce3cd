-- $1 id, $2 owner, $3 record, $4 retention (ms)
UPDATE {table} t
   SET state = 1, record = $3, expires_at = {until:$4}, purge_after = {coarse:$4}
  FROM (SELECT clock_timestamp() AS now) clock
 WHERE {mine}
RETURNING 1::bigint AS verdict
