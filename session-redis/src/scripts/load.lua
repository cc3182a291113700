-- How long the record lives, and the record. KEYS: 1 the record.
local record = redis.call('GET', KEYS[1])
if not record then return false end
return {redis.call('PTTL', KEYS[1]), record}
