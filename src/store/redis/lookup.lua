-- ARGV: longest answer to give -> nil · {record, its head alone if the answer is longer,
-- milliseconds left of the lease, of the record}
if not found then
  return false
end
local record = head
if state == 'C' and redis.call('STRLEN', KEYS[1]) - 81 <= tonumber(ARGV[1]) then
  record = redis.call('GET', KEYS[1])
end
return {record, math.max(lease_end - now(), 0), redis.call('PTTL', KEYS[1])}
