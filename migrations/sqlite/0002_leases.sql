-- Who may spend what a provider allows: one dispatcher at a time for each pacing group.
--
-- The same as ../postgres/0002_leases.sql; a test compares the two. Times are milliseconds of the
-- database's clock.

CREATE TABLE leases (
    provider TEXT NOT NULL,
    -- The pacing group within the provider; empty: all of the provider.
    name TEXT NOT NULL,
    -- NULL: it was let go of.
    owner TEXT,
    -- Rises whenever it is taken.
    epoch BIGINT NOT NULL,
    taken_ms BIGINT NOT NULL,
    -- When the state was written; before the first time: when the lease was first taken.
    renewed_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    -- It was let go of with its state complete: nothing was spent since.
    clean BOOLEAN NOT NULL DEFAULT FALSE,
    -- What was spent (JSON); NULL: nothing was ever written.
    state TEXT,
    PRIMARY KEY (provider, name)
);
