-- -> 0 absent · 1 live · 2 forgotten
if head == '' then
  return 0
end
if runs and redis.call('PTTL', KEYS[1]) > outlives then
  return 1
end
redis.call('UNLINK', KEYS[1])
return 2
