-- Shared by the scripts that follow it: names a session in its user's index, until it expires at the latest. The session
-- is the part in braces of KEYS[1], unless it is named.
-- The score only grows, and the slack covers the clocks of two nodes: the index may name what is gone, and never omits
-- what lives.
local function remember(index, ttl, session)
  local t = redis.call('TIME')
  local rest = ttl + 60000
  local at = t[1] * 1000 + math.floor(t[2] / 1000) + rest
  session = session or string.match(KEYS[1], '{(.*)}')
  redis.call('ZADD', index, 'GT', string.format('%.0f', at), session)
  if redis.call('PTTL', index) < rest then
    redis.call('PEXPIRE', index, string.format('%.0f', rest))
  end
end

