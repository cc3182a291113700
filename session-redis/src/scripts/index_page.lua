-- A page of an index, from which what has expired is taken out. KEYS: 1 the index.
-- ARGV: 1 score and 2 member of the last entry of the page before ('' for the first page), 3 how many.
-- Entries are in the order of their scores, which only grow: whoever moves meanwhile moves to where we have not been.
local t = redis.call('TIME')
local expired = string.format('(%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
local from
if ARGV[2] == '' then
  from = redis.call('ZCOUNT', KEYS[1], '-inf', expired)
elseif redis.call('ZSCORE', KEYS[1], ARGV[2]) == ARGV[1] then
  from = redis.call('ZRANK', KEYS[1], ARGV[2]) + 1
else
  from = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[1])
end
local page = redis.call('ZRANGE', KEYS[1], from, from + ARGV[3] - 1, 'WITHSCORES')
-- Last: while a slot is on its way, an index that has just lost its last entry is the other side's.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', expired)
return page
