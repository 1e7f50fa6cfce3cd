-- ARGV: owner, state, retention (ms) -> 1 held · 0 lost
if not runs or owner ~= ARGV[1] then
  return 0
end
-- First what a full server allows: it is asked for room before the first write alone.
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('SETRANGE', KEYS[1], 64, ARGV[2])
return 1
