-- Take a place, claim what was handed over, poll, ask again after a lost reply: all the same step.
-- ARGV: 1 ticket, 2 channel ('': no place in the queue), 3 lease, 4 claim, 5 how long a waiter counts as alive,
--       6 '1': only for a live record, which is returned, 7 '1': give up the place, 8 the longest queue.
local me = ARGV[1]
if ARGV[6] == '1' and redis.call('EXISTS', KEYS[1]) == 0 then
  drop(me)
  if redis.call('GET', KEYS[2]) == me then pass(ARGV[4]) end
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
  if not head or head == me then
    holder = me
  else
    pass(ARGV[4])
    holder = redis.call('GET', KEYS[2])
  end
end
if holder == me then
  drop(me)
  redis.call('SET', KEYS[2], me, 'PX', ARGV[3])
  if ARGV[6] == '1' then
    return {'granted', redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
  end
  return {'granted'}
end
if ARGV[7] == '1' then
  drop(me)
elseif ARGV[2] ~= '' then
  local known = redis.call('HEXISTS', KEYS[4], me) == 1
  if known or redis.call('LLEN', KEYS[3]) < tonumber(ARGV[8]) then
    if not known then
      redis.call('LREM', KEYS[3], 0, me)
      redis.call('RPUSH', KEYS[3], me)
    end
    redis.call('HSET', KEYS[4], me, string.format('%.0f %s', now() + ARGV[5], ARGV[2]))
    redis.call('PEXPIRE', KEYS[3], ARGV[5] * 2)
    redis.call('PEXPIRE', KEYS[4], ARGV[5] * 2)
  end
end
return {'held', redis.call('PTTL', KEYS[2])}
