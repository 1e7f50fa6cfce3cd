-- $1 id -> fingerprint, attempt, phase (0 running, 1 completed, 2 failed, 3 sealed),
-- microseconds left of the lease and of the retention, record
SELECT t.fingerprint,
       t.attempt,
       CASE WHEN t.state = 0 AND t.seals AND t.lease_until <= clock.now THEN 3
            ELSE t.state END::bigint AS phase,
       {micros:(t.lease_until - clock.now)} AS lease_left,
       {micros:(t.expires_at - clock.now)} AS retention_left,
       t.record
  FROM {table} t, (SELECT clock_timestamp() AS now) clock
 WHERE t.id = $1 AND t.expires_at > clock.now
