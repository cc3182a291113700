-- Replace the record without the lock, if nobody has it and the version allows it. KEYS: 1 the record, 2 its lock.
-- ARGV: 1 expected version, 2 new record (with its version), 3 ttl.
-- KEYS[3], when given: the index of the user to whom the record now belongs.
-- Few keys and arguments, no library, and a word in place of a list: passing these is most of what a script costs.
local version = redis.call('GETRANGE', KEYS[1], 2, 17)
if version == string.sub(ARGV[2], 3, 18) then return 'stored' end -- sent twice: it is done
if version == '' and redis.call('EXISTS', KEYS[1]) == 0 then return {'missing'} end
if redis.call('EXISTS', KEYS[2]) == 1 then return {'not_holder', redis.call('PTTL', KEYS[2])} end
if version ~= ARGV[1] then return {'conflict', redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])} end
if KEYS[3] then remember(KEYS[3], ARGV[3]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 'stored'
