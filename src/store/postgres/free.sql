-- $1 id, $2 owner
DELETE FROM {table} t
 USING (SELECT clock_timestamp() AS now) clock
 WHERE {mine} AND t.attempt = 1
RETURNING 1::bigint AS verdict
