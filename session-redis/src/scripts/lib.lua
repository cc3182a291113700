-- Shared by the scripts that follow it.
-- KEYS: 1 the record, 2 its lock (the holder's ticket), 3 its queue (tickets, oldest first),
--       4 its tickets (ticket -> "deadline channel": until when its waiter counts as alive, and where to wake it).
-- A ticket is the token of the lock that it asks for.
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A message that cannot be sent (by rights of the user, for one) is no reason to fail half-way: its waiter polls.
local function tell(channel, word, ticket)
  redis.pcall('PUBLISH', channel, word .. ' ' .. ticket)
end

-- The channel of a ticket whose waiter was heard of lately; nil for the others.
local function channel_of(ticket)
  local entry = redis.pcall('HGET', KEYS[4], ticket)
  if type(entry) ~= 'string' then return nil end
  local deadline, channel = string.match(entry, '^(%d+) (.*)$')
  if deadline and tonumber(deadline) > now() then return channel end
  return nil
end

local function drop(ticket)
  redis.call('LREM', KEYS[3], 0, ticket)
  redis.call('HDEL', KEYS[4], ticket)
end

-- Gives the lock to the oldest living ticket, for as long as it may take to claim it; frees it when there is none.
-- It follows a write and must not fail: a queue that is none (of another type) is removed.
local function pass(claim)
  local taken = false
  while true do
    local ticket = redis.pcall('LPOP', KEYS[3])
    if type(ticket) ~= 'string' then
      if taken then -- while a slot is on its way, a key that is no more is the other side's: each by itself
        for i = 2, 4 do redis.pcall('DEL', KEYS[i]) end
      else
        redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
      end
      return
    end
    taken = true
    local channel = channel_of(ticket)
    redis.pcall('HDEL', KEYS[4], ticket)
    if channel then
      redis.call('SET', KEYS[2], ticket, 'PX', claim)
      tell(channel, 'h1', ticket)
      return
    end
  end
end

-- Tells every waiter that there is nothing left to wait for.
-- It follows a removal and must not fail: tickets that are none (of another type) are an error, which is a
-- table without elements.
local function gone()
  local all = redis.pcall('HGETALL', KEYS[4])
  for i = 1, #all, 2 do
    local channel = string.match(all[i + 1], '^%d+ (.*)$')
    if channel then tell(channel, 'g1', all[i]) end
  end
end

