-- Leave the queue and, if the lock is mine, hand it over. ARGV: 1 token, 2 claim.
drop(ARGV[1])
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
pass(ARGV[2])
return 1
