-- The record and its ttl, of one moment. KEYS: 1 the record.
local record = redis.call('GET', KEYS[1])
if not record then return false end
return {record, redis.call('PTTL', KEYS[1])}
