-- ARGV: owner, lease, lease and retention (ms) -> 1 held · 0 lost
if not runs or owner ~= ARGV[1] then
  return 0
end
-- A later end of the record stands.
local expires = math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[3]))
-- First what a full server allows: it is asked for room before the first write alone.
redis.call('PEXPIRE', KEYS[1], expires)
if expires - ARGV[2] ~= outlives then
  redis.call('SETRANGE', KEYS[1], 65, string.format('%016.0f', expires - ARGV[2]))
end
return 1
