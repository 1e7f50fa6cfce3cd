-- -> 0 absent · 1 live · 2 forgotten
if not found then
  return 0
end
if runs and lease_end > now() then
  return 1
end
redis.call('UNLINK', KEYS[1])
return 2
