-- Replace the record, if the lock and the version allow it; then hand the lock over.
-- ARGV: 1 token ('': without a lock), 2 expected version, 3 new version, 4 new record, 5 ttl, 6 claim, 7 index member.
-- KEYS[5], when given: the index of the user to whom the record now belongs.
local lock = redis.call('GET', KEYS[2])
local held = ARGV[1] ~= '' and lock == ARGV[1]
local version = redis.call('GETRANGE', KEYS[1], 2, 17)
if version == ARGV[3] then
  if held then pass(ARGV[6]) end
  return {'stored'}
end
if version == '' and redis.call('EXISTS', KEYS[1]) == 0 then
  if held then
    gone()
    redis.call('DEL', KEYS[2])
  end
  return {'missing'}
end
if (ARGV[1] ~= '' and not held) or (ARGV[1] == '' and lock) then
  return {'not_holder', redis.call('PTTL', KEYS[2])}
end
if version ~= ARGV[2] then
  return {'conflict', redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
end
if KEYS[5] then remember(KEYS[5], ARGV[7], ARGV[5]) end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
if held then pass(ARGV[6]) end
return {'stored'}
