-- ARGV: owner, lease, lease and retention (ms) -> 1 held · 0 lost
if not runs or owner ~= ARGV[1] then
  return 0
end
-- A later end of the record stands.
local expires = math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[3]))
redis.call('SETRANGE', KEYS[1], 65, string.format('%016.0f', expires - ARGV[2]))
redis.call('PEXPIRE', KEYS[1], expires)
return 1
