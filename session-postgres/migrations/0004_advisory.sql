-- Advisory mode: the locks are held by a few connections of each process, and these are the only statements that they run.

-- Locks and reads. a_held: this connection has the lock already; it must not be counted twice.
-- Outcomes: 0 granted, 1 missing (only if a_load; not locked), 2 held, 4 not held: a write without a lock is just being committed.
CREATE FUNCTION @@take(
    a_lock bigint, a_key bytea, a_load boolean, a_held boolean,
    OUT outcome integer, OUT now_us bigint, OUT version bytea, OUT data bytea, OUT left_us bigint, OUT principal bytea
) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    now_us := @now@;
    IF a_held OR pg_try_advisory_lock(a_lock) THEN
        outcome := 0;
        IF a_load THEN
            -- A statement of its own, after the lock: what the last holder has written is seen.
            SELECT s.version, s.data, s.expires_us - now_us, s.principal INTO version, data, left_us, principal
                FROM @@records s WHERE s.key = a_key AND s.expires_us > now_us;
            IF NOT FOUND THEN
                PERFORM pg_advisory_unlock(a_lock);
                outcome := 1;
            END IF;
        END IF;
        RETURN;
    END IF;
    outcome := CASE WHEN pg_try_advisory_xact_lock_shared(a_lock) THEN 4 ELSE 2 END;
    IF a_load THEN
        PERFORM FROM @@records s WHERE s.key = a_key AND s.expires_us > now_us;
        IF NOT FOUND THEN
            outcome := 1;
        END IF;
    END IF;
END $$;

-- One trip for many: unlocks, then locks and reads.
CREATE FUNCTION @@step(
    a_release bigint[], a_lock bigint[], a_key bytea[], a_load boolean[], a_held boolean[], a_idle_ms integer
) RETURNS TABLE (outcome integer, now_us bigint, version bytea, data bytea, left_us bigint, principal bytea)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    FOR j IN 1..cardinality(a_release) LOOP
        PERFORM pg_advisory_unlock(a_release[j]);
    END LOOP;
    -- How long the server waits for the next word of a process before it ends the connection, and with it the locks.
    IF a_idle_ms IS NOT NULL THEN
        PERFORM set_config('idle_session_timeout', a_idle_ms::text, false);
    END IF;
    FOR j IN 1..cardinality(a_lock) LOOP
        SELECT t.outcome, t.now_us, t.version, t.data, t.left_us, t.principal
            INTO outcome, now_us, version, data, left_us, principal
            FROM @@take(a_lock[j], a_key[j], a_load[j], a_held[j]) t;
        RETURN NEXT;
    END LOOP;
END $$;

-- The same for one session, waiting in the server's own queue; fails with lock_not_available when a_patience_ms is over.
CREATE FUNCTION @@wait(
    a_lock bigint, a_key bytea, a_load boolean, a_patience_ms integer, a_idle_ms integer,
    OUT outcome integer, OUT now_us bigint, OUT version bytea, OUT data bytea, OUT left_us bigint, OUT principal bytea
) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('lock_timeout', a_patience_ms::text, true), set_config('idle_session_timeout', a_idle_ms::text, false);
    PERFORM pg_advisory_lock(a_lock);
    outcome := 0;
    now_us := @now@;
    IF a_load THEN
        SELECT s.version, s.data, s.expires_us - @now@, s.principal INTO version, data, left_us, principal
            FROM @@records s WHERE s.key = a_key AND s.expires_us > @now@;
        IF NOT FOUND THEN
            PERFORM pg_advisory_unlock(a_lock);
            outcome := 1;
        END IF;
    END IF;
END $$;

-- Writes (or deletes) of holders, then unlocks them. The caller sorts by key, so that two of these never wait for each other's rows.
-- After a conflict the lock is kept, and so it is when what is to be deleted is damaged: that stays as it is, and is returned with the
-- same outcome. a_until_us: when the lease ends, as the server said when it was granted.
--
-- Whoever locks next must find what is written here, so no lock may be free before the commit. It is not: each is first taken once more,
-- shared and until the end of the transaction, which is what keeps everyone else from it while the commit is on its way.
-- An error comes before any unlock: then nothing was written, and every lock is kept.
CREATE FUNCTION @@commit(
    a_lock bigint[], a_key bytea[], a_until_us bigint[], a_delete boolean[], a_expected bytea[], a_version bytea[], a_data bytea[],
    a_ttl_us bigint[], a_principal bytea[],
    OUT outcome integer[], OUT version bytea[], OUT data bytea[], OUT left_us bigint[], OUT principal bytea[]
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    o integer; v bytea; d bytea; l bigint; p bytea;
BEGIN
    outcome := '{}'; version := '{}'; data := '{}'; left_us := '{}'; principal := '{}';
    FOR j IN 1..cardinality(a_lock) LOOP
        o := 0; v := NULL; d := NULL; l := NULL; p := NULL;
        IF a_delete[j] THEN
            DELETE FROM @@records s WHERE s.key = a_key[j] AND s.expires_us > @now@ AND @intact@
                RETURNING s.version, s.data, s.expires_us - @now@, s.principal INTO v, d, l, p;
            IF NOT FOUND THEN
                SELECT s.version, s.data, s.expires_us - @now@, s.principal INTO v, d, l, p
                    FROM @@records s WHERE s.key = a_key[j] AND s.expires_us > @now@ AND NOT (@intact@);
                o := CASE WHEN FOUND THEN 3 ELSE 1 END;
            END IF;
        ELSE
            UPDATE @@records s
                SET version = a_version[j], data = a_data[j], expires_us = @now@ + a_ttl_us[j], expires_h = @hour@(a_ttl_us[j]), principal = a_principal[j]
                WHERE s.key = a_key[j] AND s.version = a_expected[j] AND s.expires_us > @now@ AND a_until_us[j] > @now@;
            IF NOT FOUND THEN
                SELECT s.version, s.data, s.expires_us - @now@, s.principal INTO v, d, l, p
                    FROM @@records s WHERE s.key = a_key[j] AND s.expires_us > @now@;
                o := CASE WHEN NOT FOUND THEN 1 WHEN a_until_us[j] <= @now@ THEN 2 ELSE 3 END;
            END IF;
        END IF;
        outcome := outcome || o; version := version || v; data := data || d; left_us := left_us || l; principal := principal || p;
    END LOOP;
    FOR j IN 1..cardinality(a_lock) LOOP
        IF outcome[j] <> 3 THEN
            PERFORM pg_advisory_xact_lock_shared(a_lock[j]);
            PERFORM pg_advisory_unlock(a_lock[j]);
        END IF;
    END LOOP;
END $$;
