-- The beginning of the scripts: what stands at KEYS[1], a string of 81 bytes and then the
-- answer, if there is one:
--
--    1  32  fingerprint
--   33  16  owner
--   49  16  attempt, decimal
--   65   1  state: t running, may be taken over · s running, sealed when its lease ends
--           F failed · S sealed · C completed
--   66  16  by how many milliseconds the record outlives its lease, decimal
--   82      the answer
--
-- The end of the record is the expiry of the key, and the lease ends that much before it:
-- nothing else is known of time. -1 is the reply to a record that is none.
local head = redis.call('GETRANGE', KEYS[1], 0, 80)
local owner, state, attempt, outlives
if head ~= '' then
  owner, attempt, state, outlives =
    head:sub(33, 48), head:sub(49, 64), head:sub(65, 65), head:sub(66, 81)
  if #head ~= 81 or attempt:find('%D') or outlives:find('%D')
    or not ('tsFSC'):find(state, 1, true) then
    return -1
  end
  attempt, outlives = tonumber(attempt), tonumber(outlives)
end
local runs = state == 't' or state == 's'
