-- The common case first, before the library of the rest costs anything: nobody waits and nobody holds.
-- Keys and arguments are those of acquire.lua.
local record
if ARGV[4] == 'l' then record = redis.call('GET', KEYS[1]) end
if record ~= false and not redis.call('LINDEX', KEYS[3], 0)
  and not redis.call('SET', KEYS[2], ARGV[1], 'NX', 'GET', 'PX', ARGV[2]) then
  if record then return {'granted', record, redis.call('PTTL', KEYS[1])} end
  return {'granted'}
end

