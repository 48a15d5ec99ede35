-- Keys of providers whose secrets are stored, encrypted; and who did what as an operator.
--
-- The same as ../postgres/0007_vault.sql; a test compares the two.

-- Rows are never removed: what was spent with a key is kept under its label, and a version that was
-- heard of must not come again.
CREATE TABLE vault_keys (
    provider TEXT NOT NULL,
    label TEXT NOT NULL,
    weight BIGINT NOT NULL,
    -- A declared budget; NULL: its own.
    budget TEXT,
    -- Rises with every secret, and with its removal.
    version BIGINT NOT NULL,
    -- The secret, encrypted, and which master key opens it; NULL: it was removed.
    sealed BLOB,
    master TEXT,
    -- Tells the secret from others; nobody can test a guess with it who has no master key.
    fingerprint TEXT,
    added_ms BIGINT NOT NULL,
    -- When the secret was last given or removed, and by whom.
    changed_ms BIGINT NOT NULL,
    changed_by TEXT NOT NULL,
    CHECK ((sealed IS NULL) = (master IS NULL)),
    PRIMARY KEY (provider, label)
);

-- Which master key secrets are sealed with from now on: one row, once there was a secret.
CREATE TABLE vault_master (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    master TEXT NOT NULL,
    since_ms BIGINT NOT NULL
);

-- What operators did. Never a secret.
CREATE TABLE audit (
    -- AUTOINCREMENT: a row number is never given again.
    pk INTEGER PRIMARY KEY AUTOINCREMENT,
    -- When, by the clock of the process that was asked.
    at_ms BIGINT NOT NULL,
    -- The name of the token; else how the machine itself was used.
    who TEXT NOT NULL,
    act TEXT NOT NULL,
    -- What it was done to, such as provider/key.
    target TEXT NOT NULL,
    outcome TEXT NOT NULL,
    -- More of it, for people.
    detail TEXT
);
CREATE INDEX audit_at ON audit (at_ms);
