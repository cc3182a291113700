-- Create the record, if there is none. KEYS[2], when given: the index of its user. ARGV: 1 record, 2 ttl.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if KEYS[2] then remember(KEYS[2], ARGV[2]) end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
