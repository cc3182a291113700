-- Name a session in an index that lives in another slot. KEYS: 1 the index. ARGV: 1 member, 2 ttl.
remember(KEYS[1], ARGV[1], ARGV[2])
return 1
