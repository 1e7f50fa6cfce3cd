-- ARGV: owner -> 1 held · 0 lost
if not runs or owner ~= ARGV[1] then
  return 0
end
if attempt == 1 then
  redis.call('DEL', KEYS[1])
  return 1
end
-- An earlier attempt may have been applied: it stays, as that of a failed run, to its end.
-- First what a full server allows: it is asked for room before the first write alone.
local left = redis.call('PTTL', KEYS[1])
if left > 0 then
  redis.call('PEXPIRE', KEYS[1], left)
end
redis.call('SETRANGE', KEYS[1], 64, 'F')
return 1
