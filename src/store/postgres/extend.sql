-- $1 id, $2 owner, $3 lease (ms), $4 lease and retention (ms)
UPDATE {table} t
   SET lease_until = {until:$3},
       expires_at = greatest(t.expires_at, {until:$4}),
       purge_after = {coarse:$4}
  FROM (SELECT clock_timestamp() AS now) clock
 WHERE {mine}
RETURNING 1::bigint AS verdict
