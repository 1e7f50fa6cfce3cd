-- What a claim reads first; alone, the server does not have to make an insertion ready.
-- $1 id, $2 fingerprint, $3 owner -> verdict, attempt, microseconds left of the lease, record; or
-- no row: nothing is there.
-- Verdicts: 1 mismatch, 2 completed, 3 in progress, 5 sealed, 6 no state, 9 to be taken, perhaps.
SELECT CASE WHEN {free} THEN 9
            WHEN t.fingerprint <> $2 THEN 1
            WHEN t.state = 1 THEN 2
            WHEN t.state = 0 AND t.lease_until > clock.now THEN 3
            WHEN t.state = 0 THEN 9
            WHEN t.state = 3 THEN 5
            ELSE 6 END::bigint AS verdict,
       t.attempt,
       {micros:(t.lease_until - clock.now)} AS lease_left,
       CASE WHEN t.state = 1 AND t.fingerprint = $2 THEN t.record END AS record
  FROM {table} t, (SELECT clock_timestamp() AS now) clock
 WHERE t.id = $1
