-- ARGV: owner, completed record, retention (ms) -> 1 stored · 2 restored · 0 not the owner
if found and owner ~= ARGV[1] then
  return 0
end
if state == 'C' then
  return 1
end
if found and not runs then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if not found then
  return 2
end
-- A hold may be that of a claim whose answer was lost: the attempt on record is the true one.
if head:sub(49, 64) ~= ARGV[2]:sub(49, 64) then
  redis.call('SETRANGE', KEYS[1], 48, head:sub(49, 64))
end
return 1
