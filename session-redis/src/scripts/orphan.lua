-- Remove a key that still has no expiry. KEYS: 1 the key.
if redis.call('PTTL', KEYS[1]) ~= -1 then return 0 end
return redis.call('DEL', KEYS[1])
