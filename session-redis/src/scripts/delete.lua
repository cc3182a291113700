-- Remove the record, tell those who wait for it, and only then free the lock, if it is mine. ARGV: 1 token or ''.
local record = redis.call('GET', KEYS[1])
local ttl = redis.call('PTTL', KEYS[1])
if record then
  local user = string.byte(record, 2)
  if string.byte(record, 1) ~= 1 or #record < 18 or user > 1 or (user == 1 and #record < 50) then
    return {'damaged', record, ttl} -- not ours: it is left where it is
  end
  redis.call('DEL', KEYS[1])
end
gone()
-- The record is gone, so this must not fail: a lock that is none (of another type) is not mine.
if ARGV[1] ~= '' and redis.pcall('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
if not record then return {'missing'} end
return {'removed', record, ttl}
