-- ARGV: owner, lease, lease and retention (ms) -> 1 held · 0 lost
if not runs or owner ~= ARGV[1] then
  return 0
end
redis.call('SETRANGE', KEYS[1], 65, digits(now() + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], expire_not_before(ARGV[3]))
return 1
