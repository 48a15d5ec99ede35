-- Replays by filter: which dead letters run again, and how far that is.
--
-- The same as ../postgres/0005_replays.sql; a test compares the two.

CREATE TABLE replays (
    -- AUTOINCREMENT: a row number is never given again.
    pk INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    -- Whose; NULL: of everybody.
    tenant TEXT,
    -- JSON: which dead letters, and how they run again.
    filter TEXT NOT NULL,
    options TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'stopped')),
    -- Dead letters at its beginning; those that run again; those that cannot.
    total BIGINT NOT NULL,
    replayed BIGINT NOT NULL DEFAULT 0,
    skipped BIGINT NOT NULL DEFAULT 0,
    -- Dead letters up to that row are done, and those after the last one are left alone.
    position BIGINT NOT NULL DEFAULT 0,
    last_pk BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    finished_ms BIGINT
);
CREATE UNIQUE INDEX replays_id ON replays (id);
CREATE INDEX replays_running ON replays (pk) WHERE state = 'running';
