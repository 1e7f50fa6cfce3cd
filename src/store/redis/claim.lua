-- ARGV: record of a first run, lease, lease and retention (ms), longest answer to give
-- -> attempt: acquired · 0: mismatch · or the record that is in the way: completed (its head
-- alone if the answer is longer), running with what is left of its lease in place of an
-- answer, or sealed. Arrays would cost the server as much as all the rest.
local record, expires = ARGV[1], ARGV[3]
if head ~= '' then
  if head:sub(1, 32) ~= record:sub(1, 32) then
    return 0
  end
  if state == 'C' then
    if redis.call('STRLEN', KEYS[1]) - 81 > tonumber(ARGV[4]) then
      return head
    end
    return redis.call('GET', KEYS[1])
  end
  local left = redis.call('PTTL', KEYS[1])
  if left < 0 then
    -- Somebody else took the expiry away, and with it the end of the lease.
    return -1
  elseif runs and owner == record:sub(33, 48) then
    -- A later end of the record stands.
    expires = math.max(left, tonumber(expires))
  elseif runs and left >= outlives then
    return head .. string.format('%.0f', left - outlives)
  elseif state == 't' or state == 'F' then
    attempt = attempt + 1
  else
    return head
  end
  record = record:sub(1, 48) .. string.format('%016.0f', attempt) .. record:sub(65, 65)
    .. string.format('%016.0f', expires - ARGV[2])
end
redis.call('SET', KEYS[1], record, 'PX', expires)
return attempt or 1
