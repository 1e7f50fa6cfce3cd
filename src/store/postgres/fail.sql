-- $1 id, $2 owner, $3 seal, $4 retention (ms)
UPDATE {table} t
   SET state = CASE WHEN $3 THEN 3 ELSE 2 END,
       expires_at = {until:$4},
       purge_after = {coarse:$4}
  FROM (SELECT clock_timestamp() AS now) clock
 WHERE {mine}
RETURNING 1::bigint AS verdict
