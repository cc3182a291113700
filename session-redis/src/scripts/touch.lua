-- Move the expiry. ARGV: 1 expected version, 2 ttl, 3 '1': the user's index was extended already.
-- KEYS[2], when given: the index of its user. Without either, a user's session is not touched: the index comes first.
local head = redis.call('GETRANGE', KEYS[1], 0, 49)
if head == '' and redis.call('EXISTS', KEYS[1]) == 0 then return {'missing'} end
if string.sub(head, 3, 18) ~= ARGV[1] then return {'conflict'} end
if string.byte(head, 2) == 1 then
  if KEYS[2] then
    remember(KEYS[2], ARGV[2])
  elseif ARGV[3] ~= '1' then
    return {'user', string.sub(head, 19, 50)}
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'extended'}
