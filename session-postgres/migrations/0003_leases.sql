-- Lease mode: token and deadline in the row. A lock on a session that is not there is a row that is not live.

-- Outcomes: 0 granted, 1 missing (only if a_load), 2 held by another, or free and another's turn, for busy_us.
--
-- a_since_us: since when the caller waits, as this function said the first time that it was asked; 0 then, null for one that does not
-- wait. Waiters ask again and again. So that none is always late, the lock goes to the one that has waited longest: it leaves word in
-- the row, which counts for 50 ms; so often at least it has to ask again.
CREATE FUNCTION @@lock(
    a_key bytea, a_token bytea, a_lease_us bigint, a_load boolean, a_since_us bigint,
    OUT outcome integer, OUT version bytea, OUT data bytea, OUT left_us bigint, OUT principal bytea, OUT busy_us bigint,
    OUT since_us bigint
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    live boolean;
    turn_us bigint;
BEGIN
    -- A lease that a crash of the server takes away costs nothing: its holder's write is refused. So no wait for the disk.
    PERFORM set_config('synchronous_commit', 'off', true);
    since_us := CASE WHEN a_since_us > 0 THEN a_since_us ELSE @now@ END;
    LOOP
        UPDATE @@records s SET lock_token = a_token, lock_until_us = @now@ + a_lease_us, next_until_us = 0
            WHERE s.key = a_key AND (NOT a_load OR s.expires_us > @now@)
                AND CASE WHEN s.lock_until_us > @now@ THEN s.lock_token = a_token
                    ELSE s.next_until_us <= @now@ OR s.next_since_us >= since_us END
            RETURNING s.version, s.data, s.expires_us - @now@, s.principal INTO version, data, left_us, principal;
        IF FOUND THEN
            outcome := 0;
            RETURN;
        END IF;
        SELECT s.lock_until_us - @now@, CASE WHEN s.next_since_us < since_us THEN s.next_until_us - @now@ ELSE 0 END, s.expires_us > @now@
            INTO busy_us, turn_us, live FROM @@records s WHERE s.key = a_key;
        IF a_load AND NOT coalesce(live, false) THEN
            outcome := 1;
            DELETE FROM @@records s WHERE s.key = a_key AND s.lock_token = a_token AND s.expires_us <= @now@;
            RETURN;
        ELSIF busy_us > 0 OR turn_us > 0 THEN
            outcome := 2;
            busy_us := greatest(busy_us, turn_us);
            IF a_since_us IS NOT NULL THEN
                UPDATE @@records s SET next_since_us = since_us, next_until_us = @now@ + 50000
                    WHERE s.key = a_key AND (s.next_until_us <= @now@ OR s.next_since_us > since_us
                        OR s.next_since_us = since_us AND s.next_until_us <= @now@ + 25000);
            END IF;
            RETURN;
        ELSIF busy_us IS NULL THEN
            INSERT INTO @@records (key, version, data, expires_us, expires_h, lock_token, lock_until_us)
                VALUES (a_key, '', '', 0, 0, a_token, @now@ + a_lease_us) ON CONFLICT DO NOTHING;
            IF FOUND THEN
                outcome := 0;
                RETURN;
            END IF;
        END IF;
        -- What refused it has gone since: again.
    END LOOP;
END $$;

CREATE FUNCTION @@renew(a_key bytea, a_token bytea, a_lease_us bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE @@records s SET lock_until_us = @now@ + a_lease_us
        WHERE s.key = a_key AND s.lock_token = a_token AND s.lock_until_us > @now@;
    RETURN FOUND;
END $$;

CREATE FUNCTION @@release(a_key bytea, a_token bytea) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    until_us bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    DELETE FROM @@records s WHERE s.key = a_key AND s.lock_token = a_token AND s.expires_us <= @now@
        RETURNING s.lock_until_us INTO until_us;
    IF FOUND THEN
        RETURN until_us > @now@;
    END IF;
    UPDATE @@records s SET lock_token = NULL, lock_until_us = 0
        WHERE s.key = a_key AND s.lock_token = a_token AND s.lock_until_us > @now@;
    RETURN FOUND;
END $$;
