-- One row a session. Times are microseconds since 1970 by the server's clock, which is what timestamps are made of: nothing is rounded.
--
-- A row is live while expires_us is in the future; any other row does not exist for a session, and is swept. In lease mode a row
-- that is not live can still carry a lock.
CREATE @unlogged@ TABLE @@records (
    key bytea PRIMARY KEY,
    version bytea NOT NULL,
    data bytea NOT NULL,
    expires_us bigint NOT NULL,
    -- The hour of the expiry, which is what the index is on. An index on the exact expiry would make each touch a new index entry; an
    -- hour rarely changes, and an update that changes no indexed column stays in its page (HOT). Not a generated column: its
    -- expression would be prepared anew by each statement, which costs a quarter of an update.
    expires_h integer NOT NULL,
    principal bytea,
    lock_token bytea,
    lock_until_us bigint NOT NULL DEFAULT 0,
    -- Who has waited longest for the lock: since when, and until when it is believed to be still there.
    next_since_us bigint NOT NULL DEFAULT 0,
    next_until_us bigint NOT NULL DEFAULT 0
) WITH (
    -- Room in each page for the next version of its rows.
    fillfactor = @fillfactor@,
    -- A table of sessions is rewritten all day long: clean up after two in a hundred rows, not after twenty.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 500
);

-- Records come compressed where that helps; a second compression costs time and gains nothing.
ALTER TABLE @@records ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE INDEX @prefix@records_expires ON @@records (expires_h);

CREATE INDEX @prefix@records_principal ON @@records (principal, key) WHERE principal IS NOT NULL;
