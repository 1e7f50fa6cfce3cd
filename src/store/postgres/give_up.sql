-- A release after an earlier attempt, which may have been applied. $1 id, $2 owner
UPDATE {table} t
   SET state = 2
  FROM (SELECT clock_timestamp() AS now) clock
 WHERE {mine} AND t.attempt > 1
RETURNING 1::bigint AS verdict
