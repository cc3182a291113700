-- The verbs that need more than one statement. Each is one VOLATILE function: under READ COMMITTED every statement in it sees what
-- was committed before that statement, so the record that explains a refusal is the fresh one. (A common table expression would
-- show the old one.) Time is clock_timestamp(), never now(): a session that expires while its function waits must not look alive.
--
-- Outcomes: 0 done, 1 missing, 2 held by another (or no longer by the caller), 3 conflict. Of several true ones the first of
-- missing, held, conflict, done.

-- a_lock: the advisory lock of the session, or null in lease mode. a_token: the caller's lease, or null for a write without one.
CREATE FUNCTION @@replace(
    a_lock bigint, a_key bytea, a_expected bytea, a_version bytea, a_data bytea, a_ttl_us bigint, a_principal bytea, a_token bytea,
    OUT outcome integer, OUT version bytea, OUT data bytea, OUT left_us bigint, OUT principal bytea, OUT busy_us bigint
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    holder bytea;
BEGIN
    -- Shared, so that it is no obstacle to other writers, and until the commit, so that who locks next finds this write.
    IF a_lock IS NOT NULL AND NOT pg_try_advisory_xact_lock_shared(a_lock) THEN
        PERFORM FROM @@records s WHERE s.key = a_key AND s.expires_us > @now@;
        outcome := CASE WHEN FOUND THEN 2 ELSE 1 END;
        RETURN;
    END IF;
    LOOP
        UPDATE @@records s
            SET version = a_version, data = a_data, expires_us = @now@ + a_ttl_us, expires_h = @hour@(a_ttl_us), principal = a_principal,
                lock_token = NULL, lock_until_us = 0
            WHERE s.key = a_key AND s.version = a_expected AND s.expires_us > @now@
                AND CASE WHEN a_token IS NULL THEN s.lock_until_us <= @now@
                    ELSE s.lock_token = a_token AND s.lock_until_us > @now@ END;
        IF FOUND THEN
            outcome := 0;
            RETURN;
        END IF;
        SELECT s.version, s.data, s.expires_us - @now@, s.principal, s.lock_token, s.lock_until_us - @now@
            INTO version, data, left_us, principal, holder, busy_us
            FROM @@records s WHERE s.key = a_key AND s.expires_us > @now@;
        IF NOT FOUND THEN
            outcome := 1;
            UPDATE @@records s SET lock_token = NULL, lock_until_us = 0 WHERE s.key = a_key AND s.lock_token = a_token;
            RETURN;
        ELSIF (a_token IS NULL AND busy_us > 0)
            OR (a_token IS NOT NULL AND (busy_us <= 0 OR holder IS DISTINCT FROM a_token)) THEN
            outcome := 2;
            RETURN;
        ELSIF version <> a_expected THEN
            outcome := 3;
            RETURN;
        END IF;
        -- What refused the update has gone since: again.
    END LOOP;
END $$;

CREATE FUNCTION @@touch(a_key bytea, a_expected bytea, a_ttl_us bigint) RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    found_version bytea;
BEGIN
    UPDATE @@records s SET expires_us = @now@ + a_ttl_us, expires_h = @hour@(a_ttl_us)
        WHERE s.key = a_key AND s.version = a_expected AND s.expires_us > @now@;
    IF FOUND THEN
        RETURN 0;
    END IF;
    PERFORM FROM @@records s WHERE s.key = a_key AND s.expires_us > @now@;
    RETURN CASE WHEN FOUND THEN 3 ELSE 1 END;
END $$;

-- Whoever holds the lock. A lease of another outlives the record, in a row that is not live; that of the caller ends. A damaged
-- record stays as it is, its lock too, and is returned with the same outcome.
CREATE FUNCTION @@delete(
    a_key bytea, a_token bytea,
    OUT outcome integer, OUT version bytea, OUT data bytea, OUT left_us bigint, OUT principal bytea
) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    outcome := 0;
    DELETE FROM @@records s
        WHERE s.key = a_key AND s.expires_us > @now@ AND (s.lock_until_us <= @now@ OR s.lock_token = a_token) AND @intact@
        RETURNING s.version, s.data, s.expires_us - @now@, s.principal INTO version, data, left_us, principal;
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT s.version, s.data, s.expires_us - @now@, s.principal INTO version, data, left_us, principal
        FROM @@records s WHERE s.key = a_key AND s.expires_us > @now@ FOR UPDATE;
    IF FOUND THEN
        UPDATE @@records s SET expires_us = 0, expires_h = 0, version = '', data = '', principal = NULL
            WHERE s.key = a_key AND @intact@;
    ELSE
        outcome := 1;
        DELETE FROM @@records s WHERE s.key = a_key AND s.lock_token = a_token;
    END IF;
END $$;
