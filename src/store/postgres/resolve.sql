-- $1 id, $2 record, $3 retention (ms)
UPDATE {table} t
   SET state = 1, record = $2, expires_at = {until:$3}, purge_after = {coarse:$3}
  FROM (SELECT clock_timestamp() AS now) clock
 WHERE t.id = $1 AND t.expires_at > clock.now
   AND (t.state = 3 OR (t.state = 0 AND t.seals AND t.lease_until <= clock.now))
RETURNING 1::bigint AS verdict
