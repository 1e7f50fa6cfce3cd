-- $1 id, $2 owner -> 1 held, 0 lost; or no row: unknown. Waits for whoever has the row locked.
-- No other call but one that deletes the row locks it so strongly: a claim can tell.
SELECT CASE WHEN t.owner = $2 AND t.state = 0 THEN 1 ELSE 0 END::bigint AS verdict
  FROM {table} t
 WHERE t.id = $1 AND t.expires_at > clock_timestamp()
   FOR UPDATE
