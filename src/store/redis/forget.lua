-- Without what begins every other script: a record that is none is forgotten too.
-- -> 1 forgotten · 0 absent · -2 live
local head = redis.call('GETRANGE', KEYS[1], 0, 80)
if head == '' then
  return 0
end
local state, outlives = head:sub(65, 65), tonumber(head:sub(66, 81))
local runs = state == 't' or state == 's'
if runs and outlives and redis.call('PTTL', KEYS[1]) >= outlives then
  return -2
end
redis.call('UNLINK', KEYS[1])
return 1
