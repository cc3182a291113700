-- Name a session in an index that lives in another slot. KEYS: 1 the index. ARGV: 1 session, 2 ttl.
remember(KEYS[1], ARGV[2], ARGV[1])
return 1
