-- What operators want, and what dispatchers say of how things stand.
--
-- The same as ../postgres/0004_operators.sql; a test compares the two.

-- The last order about a provider, a key or a budget. Rows are never removed: a version that was
-- heard of must not come again.
CREATE TABLE orders (
    provider TEXT NOT NULL,
    subject TEXT NOT NULL CHECK (subject IN ('provider', 'key', 'budget')),
    -- The label of the key, the name of the budget; empty: the provider.
    name TEXT NOT NULL,
    -- Out of use until the next order; else in use, whatever was learnt before.
    held BOOLEAN NOT NULL,
    version BIGINT NOT NULL,
    -- Who gave it.
    given_by TEXT NOT NULL,
    -- When, by the clock of the process that was asked.
    given_ms BIGINT NOT NULL,
    PRIMARY KEY (provider, subject, name)
);

-- The live state of a provider as the process sees it that spends (some of) its budgets.
CREATE TABLE reports (
    provider TEXT NOT NULL,
    owner TEXT NOT NULL,
    -- When it was written, by the database's clock.
    written_ms BIGINT NOT NULL,
    -- JSON.
    report TEXT NOT NULL,
    PRIMARY KEY (provider, owner)
);
CREATE INDEX reports_owner ON reports (owner);
