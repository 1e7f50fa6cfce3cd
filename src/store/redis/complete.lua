-- ARGV: owner, completed record, retention (ms) -> 1 stored · 2 restored · 0 not the owner
if head ~= '' then
  if owner ~= ARGV[1] then
    return 0
  end
  if not runs then
    return state == 'C' and 1 or 0
  end
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if head == '' then
  return 2
end
-- A hold may be that of a claim whose answer was lost: the attempt on record is the true one.
local counted = head:sub(49, 64)
if ARGV[2]:sub(49, 64) ~= counted then
  redis.call('SETRANGE', KEYS[1], 48, counted)
end
return 1
