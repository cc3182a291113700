-- After acquire_fast.lua, which has loaded `record` (false: there is none).
-- Take a place, claim what was handed over, poll, ask again after a lost reply: all the same step.
-- ARGV: 1 ticket, 2 lease, 3 claim, 4 'l': only for a live record, which is returned; '': the lock alone,
--       5 '' (no place in the queue), 'leave' (give the place up), or 'alive channel': take or keep a place; for how long
--         its waiter counts as alive, and where to wake it.
local LONGEST_QUEUE = 1024
local me = ARGV[1]
if record == false then
  drop(me)
  if redis.call('GET', KEYS[2]) == me then pass(ARGV[3]) end
  return {'gone'}
end
local holder = redis.call('GET', KEYS[2])
if not holder then
  -- Free: for the oldest living ticket, and for me when there is none before mine.
  local head = redis.call('LINDEX', KEYS[3], 0)
  while head and head ~= me do
    if channel_of(head) then break end
    redis.call('LPOP', KEYS[3])
    redis.call('HDEL', KEYS[4], head)
    head = redis.call('LINDEX', KEYS[3], 0)
  end
  if head == me then drop(me) end
  if not head or head == me then
    holder = me
  else
    pass(ARGV[3])
    holder = redis.call('GET', KEYS[2])
  end
end
if holder == me then -- and so without a ticket: whoever was handed the lock lost it in that step
  redis.call('SET', KEYS[2], me, 'PX', ARGV[2])
  if record then return {'granted', record, redis.call('PTTL', KEYS[1])} end
  return {'granted'}
end
if ARGV[5] == 'leave' then
  drop(me)
elseif ARGV[5] ~= '' then
  local known = redis.call('HEXISTS', KEYS[4], me) == 1
  if known or redis.call('LLEN', KEYS[3]) < LONGEST_QUEUE then
    if not known then
      redis.call('LREM', KEYS[3], 0, me)
      redis.call('RPUSH', KEYS[3], me)
    end
    local alive, channel = string.match(ARGV[5], '^(%d+) (.*)$')
    redis.call('HSET', KEYS[4], me, string.format('%.0f %s', now() + alive, channel))
    redis.call('PEXPIRE', KEYS[3], alive * 2)
    redis.call('PEXPIRE', KEYS[4], alive * 2)
  end
end
return {'held', redis.call('PTTL', KEYS[2])}
