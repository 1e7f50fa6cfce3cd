-- ARGV: fingerprint, owner, state, lease, lease and retention (ms), longest answer to give
-- -> {1, attempt} acquired · {2, attempt, lease left} in progress · {3, record} completed,
--    its head alone if the answer is longer · {4} mismatch · {5, attempt} abandoned
local expires, at = ARGV[5], now()
if found then
  if head:sub(1, 32) ~= ARGV[1] then
    return {4}
  end
  if state == 'C' then
    if redis.call('STRLEN', KEYS[1]) - 81 > tonumber(ARGV[6]) then
      return {3, head}
    end
    return {3, redis.call('GET', KEYS[1])}
  end
  if runs and owner == ARGV[2] then
    expires = expire_not_before(expires)
  elseif runs and lease_end > at then
    return {2, attempt, lease_end - at}
  elseif state == 't' or state == 'F' then
    attempt = attempt + 1
  elseif state == 's' or state == 'S' then
    return {5, attempt}
  else
    return -1
  end
else
  attempt = 1
end
local record = ARGV[1] .. ARGV[2] .. digits(attempt) .. ARGV[3] .. digits(at + ARGV[4])
redis.call('SET', KEYS[1], record, 'PX', expires)
return {1, attempt}
