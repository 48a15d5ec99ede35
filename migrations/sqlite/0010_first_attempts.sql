-- The first attempt of a job and of a delivery stands in its own row: most have no other, and need one row less.
--
-- The same as ../postgres/0010_first_attempts.sql; a test compares the two. What was written before stays where it is:
-- the views tell all of it.

-- Attempt 1 of run 1; no outcome: there was none yet, or it is in attempts.
ALTER TABLE jobs ADD COLUMN first_at_ms BIGINT;
ALTER TABLE jobs ADD COLUMN first_key TEXT;
ALTER TABLE jobs ADD COLUMN first_status BIGINT;
ALTER TABLE jobs ADD COLUMN first_outcome TEXT;
ALTER TABLE jobs ADD COLUMN first_latency_ms BIGINT;
ALTER TABLE jobs ADD COLUMN first_error TEXT;

CREATE VIEW all_attempts AS
    SELECT pk AS job_pk, CAST(1 AS BIGINT) AS run, CAST(1 AS BIGINT) AS n, first_at_ms AS at_ms, first_key AS key,
        first_status AS status, first_outcome AS outcome, first_latency_ms AS latency_ms, first_error AS error
    FROM jobs WHERE first_outcome IS NOT NULL
    UNION ALL
    SELECT job_pk, run, n, at_ms, key, status, outcome, latency_ms, error FROM attempts;

ALTER TABLE deliveries ADD COLUMN first_at_ms BIGINT;
ALTER TABLE deliveries ADD COLUMN first_status BIGINT;
ALTER TABLE deliveries ADD COLUMN first_latency_ms BIGINT;
ALTER TABLE deliveries ADD COLUMN first_error TEXT;

CREATE VIEW all_delivery_attempts AS
    SELECT pk AS delivery_pk, CAST(1 AS BIGINT) AS n, first_at_ms AS at_ms, first_status AS status,
        first_latency_ms AS latency_ms, first_error AS error
    FROM deliveries WHERE first_at_ms IS NOT NULL
    UNION ALL
    SELECT delivery_pk, n, at_ms, status, latency_ms, error FROM delivery_attempts;
