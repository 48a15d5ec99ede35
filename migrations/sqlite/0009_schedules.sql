-- Recurring jobs: up to which time each schedule has made its jobs.
--
-- The same as ../postgres/0009_schedules.sql; a test compares the two.

CREATE TABLE schedules (
    name TEXT NOT NULL,
    -- The cron line and its zone: another one is another schedule, which begins when it is first seen.
    spec TEXT NOT NULL,
    -- Every time up to this one is done with.
    last_ms BIGINT NOT NULL,
    -- When a scheduler that has it configured looked last.
    seen_ms BIGINT NOT NULL,
    PRIMARY KEY (name, spec)
);
