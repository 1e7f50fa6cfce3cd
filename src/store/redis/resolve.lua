-- ARGV: what follows the attempt in a completed record, retention (ms) -> 1 resolved · 0 not sealed
if state == 'S' or (state == 's' and redis.call('PTTL', KEYS[1]) < outlives) then
  redis.call('SET', KEYS[1], head:sub(1, 64) .. ARGV[1], 'PX', ARGV[2])
  return 1
end
return 0
