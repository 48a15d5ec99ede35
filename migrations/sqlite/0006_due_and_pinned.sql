-- What waits for one key is found without going through what waits for others; what somebody wants cancelled is found
-- at once; queues outlive their providers.
--
-- The same as ../postgres/0006_due_and_pinned.sql; a test compares the two.

-- What can be claimed, by time: what may go with any key, and apart from it what is pinned to one. Ended and claimed
-- jobs are in neither.
DROP INDEX jobs_due;
CREATE INDEX jobs_due ON jobs (provider, lane, due_ms, pk)
    WHERE owner IS NULL AND state IN ('queued', 'waiting') AND pin IS NULL;
CREATE INDEX jobs_due_pinned ON jobs (provider, lane, due_ms, pk)
    WHERE owner IS NULL AND state IN ('queued', 'waiting') AND pin IS NOT NULL;
-- The same by pin, for a process that paces only some of the keys.
CREATE INDEX jobs_pins ON jobs (provider, lane, pin, due_ms, pk)
    WHERE owner IS NULL AND state IN ('queued', 'waiting') AND pin IS NOT NULL;

-- What somebody asked its owner to let go of.
CREATE INDEX jobs_cancelled ON jobs (owner) WHERE owner IS NOT NULL AND cancel_requested;

-- Queues that were declared in the broker, which cannot be asked for them.
CREATE TABLE queues (
    name TEXT NOT NULL PRIMARY KEY
);
