-- ARGV: owner -> 1 held · 0 lost
if not runs or owner ~= ARGV[1] then
  return 0
end
if attempt == 1 then
  redis.call('DEL', KEYS[1])
else
  -- An earlier attempt may have been applied.
  redis.call('SETRANGE', KEYS[1], 64, 'F')
end
return 1
