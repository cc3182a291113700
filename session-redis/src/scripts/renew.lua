-- Start the lease anew, if the lock is mine. KEYS: 1 the lock. ARGV: 1 token, 2 lease.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
