-- A key that was seen to be free, or to have its lease over: all of it is decided anew.
-- $1 id, $2 fingerprint, $3 owner, $4 lease (ms), $5 lease and retention (ms), $6 seals
-- -> as of a claim, with the verdicts 4 abandoned by its lease, 7 locked as by a transaction
-- that fences its run, 8 to be asked for again.
WITH clock AS MATERIALIZED (
  SELECT clock_timestamp() AS now
), seen AS MATERIALIZED (
  SELECT CASE WHEN {free} THEN 0
              WHEN t.fingerprint <> $2 THEN 1
              WHEN t.state = 1 THEN 2
              WHEN t.state = 0 AND t.lease_until > clock.now THEN 3
              WHEN t.state = 0 THEN 4
              WHEN t.state = 3 THEN 5
              ELSE 6 END AS verdict,
         t.state = 0 AND t.expires_at > clock.now AS may_be_fenced,
         t.attempt, t.lease_until - clock.now AS lease_left, t.record
    FROM {table} t, clock
   WHERE t.id = $1
), locked AS MATERIALIZED (
  -- Never waits: an open transaction that fences its run keeps the row locked. The lock is on
  -- the newest version, which may be another than the one that was seen.
  SELECT t.id, t.state = 0 AND t.lease_until <= clock.now AS has_lapsed
    FROM {table} t, clock
   WHERE t.id = $1 AND (SELECT verdict IN (0, 4) FROM seen)
     FOR NO KEY UPDATE OF t SKIP LOCKED
), passing AS MATERIALIZED (
  -- A fence locks out this as well, and the statement of another call does not, unless it
  -- deletes the row.
  SELECT t.id
    FROM {table} t
   WHERE t.id = $1 AND (SELECT verdict IN (0, 4) AND may_be_fenced FROM seen)
     AND NOT EXISTS (SELECT FROM locked)
     FOR KEY SHARE SKIP LOCKED
), taken AS (
  UPDATE {table} t
     SET fingerprint = $2,
         owner = $3,
         attempt = CASE WHEN t.expires_at <= clock.now THEN 1
                        WHEN t.state = 0 AND t.owner = $3 THEN t.attempt
                        ELSE least(t.attempt, 9223372036854775806) + 1 END,
         state = 0,
         seals = $6,
         lease_until = {until:$4},
         created_at = CASE WHEN t.expires_at <= clock.now THEN clock.now ELSE t.created_at END,
         expires_at = CASE WHEN t.state = 0 AND t.owner = $3 THEN greatest(t.expires_at, {until:$5})
                           ELSE {until:$5} END,
         purge_after = {coarse:$5},
         record = NULL
    FROM locked, clock
   WHERE t.id = locked.id AND {free}
  RETURNING t.attempt
)
SELECT 0::bigint AS verdict, attempt, 0::bigint AS lease_left, NULL::bytea AS record FROM taken
UNION ALL
SELECT CASE WHEN verdict NOT IN (0, 4) THEN verdict
            WHEN EXISTS (SELECT FROM locked) THEN
              CASE WHEN (SELECT has_lapsed FROM locked) THEN verdict ELSE 8 END
            WHEN may_be_fenced AND NOT EXISTS (SELECT FROM passing) THEN 7
            ELSE 8 END,
       attempt, {micros:lease_left}, CASE WHEN verdict = 2 THEN record END
  FROM seen
 WHERE verdict <> 0 OR NOT EXISTS (SELECT FROM locked)
