-- ARGV: owner, completed record, retention (ms), whether a full server has to take it (1|0)
-- -> 1 stored · 2 restored · 0 not the owner
local record = ARGV[2]
if head ~= '' then
  if owner ~= ARGV[1] then
    return 0
  end
  if state == 'C' then
    -- A write that changes nothing: WAIT counts who has it, not who has the first one.
    local left = redis.call('PTTL', KEYS[1])
    if left > 0 then
      redis.call('PEXPIRE', KEYS[1], left)
    end
    return 1
  end
  if not runs then
    return 0
  end
  -- A hold may be that of a claim whose answer was lost: the attempt on record is the true one.
  if head:sub(1, 64) ~= record:sub(1, 64) then
    record = head:sub(1, 64) .. record:sub(65)
  end
  if ARGV[4] == '1' then
    -- A full server is asked for room before the first write alone, and not for this one.
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
  end
end
redis.call('SET', KEYS[1], record, 'PX', ARGV[3])
return head == '' and 2 or 1
