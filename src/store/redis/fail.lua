-- ARGV: owner, state, retention (ms) -> 1 held · 0 lost
if not runs or owner ~= ARGV[1] then
  return 0
end
redis.call('SETRANGE', KEYS[1], 64, ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
