-- Replace the record under the lock, if lock and version allow it; then hand the lock over.
-- ARGV: 1 token, 2 expected version, 3 new record (with its version), 4 ttl, 5 claim.
-- KEYS[5], when given: the index of the user to whom the record now belongs.
local held = redis.call('GET', KEYS[2]) == ARGV[1]
local version = redis.call('GETRANGE', KEYS[1], 2, 17)
if version == string.sub(ARGV[3], 3, 18) then -- sent twice: it is done
  if held then pass(ARGV[5]) end
  return 'stored'
end
if version == '' and redis.call('EXISTS', KEYS[1]) == 0 then
  if held then
    gone()
    redis.call('DEL', KEYS[2])
  end
  return {'missing'}
end
if not held then return {'not_holder', redis.call('PTTL', KEYS[2])} end
if version ~= ARGV[2] then return {'conflict', redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])} end
if KEYS[5] then remember(KEYS[5], ARGV[4]) end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
pass(ARGV[5])
return 'stored'
