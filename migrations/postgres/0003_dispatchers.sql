-- Who dispatches which provider: its pacing groups are spread evenly over those that live.
--
-- The same as ../sqlite/0003_dispatchers.sql; a test compares the two. Whether one lives is said by its heartbeat in
-- owners.

CREATE TABLE dispatchers (
    provider TEXT NOT NULL,
    owner TEXT NOT NULL,
    -- Stands for the pacing groups that it knows: it shares with those that know the same.
    structure TEXT NOT NULL,
    PRIMARY KEY (provider, owner)
);
CREATE INDEX dispatchers_owner ON dispatchers (owner);
