-- ARGV: longest answer to give -> nil · {record, its head alone if the answer is longer,
-- milliseconds left of it}
if head == '' then
  return false
end
local record = head
if state == 'C' and redis.call('STRLEN', KEYS[1]) - 81 <= tonumber(ARGV[1]) then
  record = redis.call('GET', KEYS[1])
end
return {record, redis.call('PTTL', KEYS[1])}
