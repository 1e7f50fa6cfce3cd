-- The beginning of every script: what stands at KEYS[1], a string of 81 bytes and then the
-- answer, if there is one:
--
--    1  32  fingerprint
--   33  16  owner
--   49  16  attempt, decimal
--   65   1  state: t running, may be taken over · s running, sealed when its lease ends
--           F failed · S sealed · C completed
--   66  16  end of the lease, decimal, milliseconds of the server's clock
--   82      the answer
--
-- The end of the record is the expiry of the key. -1 is the reply to a record that is none.
local head = redis.call('GETRANGE', KEYS[1], 0, 80)
local found = head ~= ''
local owner, state = head:sub(33, 48), head:sub(65, 65)
local attempt, lease_end = tonumber(head:sub(49, 64)), tonumber(head:sub(66, 81))
if found and not (attempt and lease_end and #head == 81) then
  return -1
end
local runs = state == 't' or state == 's'

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function digits(number)
  return string.format('%016.0f', number)
end

-- A later end of the record stands.
local function expire_not_before(ms)
  return math.max(redis.call('PTTL', KEYS[1]), tonumber(ms))
end
