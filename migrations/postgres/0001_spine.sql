-- The spine: jobs, their attempts, events, deliveries and dead letters, and who holds them.
--
-- The same tables, columns and indexes as ../sqlite/0001_spine.sql; a test compares the two.
-- Times are milliseconds of the caller's clock (owners.seen_ms alone is the database's).
-- No foreign keys are declared: every row is written in one transaction by one module, the check
-- of each would cost as much as the insert it guards, and retention removes children first.

CREATE TABLE jobs (
    pk BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant TEXT NOT NULL DEFAULT '',
    id TEXT NOT NULL,
    -- Of the canonical envelope: what tells the same job from another one under its id.
    hash BYTEA NOT NULL,
    provider TEXT NOT NULL,
    lane TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'waiting', 'running', 'succeeded', 'dead', 'expired', 'cancelled')),
    run BIGINT NOT NULL DEFAULT 1,
    -- Of this run: every attempt, those that count as failures, the last backoff, the first attempt.
    attempts BIGINT NOT NULL DEFAULT 0,
    failures BIGINT NOT NULL DEFAULT 0,
    backoff_ms BIGINT NOT NULL DEFAULT 0,
    first_attempt_ms BIGINT,
    -- Never after deadline_ms, so that a job is found when it expires.
    due_ms BIGINT NOT NULL,
    deadline_ms BIGINT,
    created_ms BIGINT NOT NULL,
    finished_ms BIGINT,
    -- Who holds it; the epoch rises with every claim and every replay.
    owner TEXT,
    epoch BIGINT NOT NULL DEFAULT 0,
    -- An at_most_once call of it may have left.
    started BOOLEAN NOT NULL DEFAULT FALSE,
    -- A dispatcher died while it held the job in this run: a call may have been made that nobody recorded.
    orphaned BOOLEAN NOT NULL DEFAULT FALSE,
    cancel_requested BOOLEAN NOT NULL DEFAULT FALSE,
    waiting_reason TEXT,
    reason TEXT,
    error TEXT,
    delivery TEXT NOT NULL CHECK (delivery IN ('at_least_once', 'at_most_once')),
    cost BIGINT NOT NULL DEFAULT 1,
    -- The key label or budget it is pinned to.
    pin TEXT,
    -- Of this run.
    idempotency_key TEXT NOT NULL,
    reply_to TEXT,
    correlation_id TEXT,
    traceparent TEXT,
    -- Parts of the envelope that completions need, so that it is not parsed for them (JSON).
    callback TEXT,
    metadata TEXT,
    envelope_bytes BIGINT NOT NULL,
    envelope TEXT NOT NULL
);
-- The id first: it is looked up with and without a tenant.
CREATE UNIQUE INDEX jobs_id ON jobs (id, tenant);
-- What can be claimed. Ended and claimed jobs are not in it.
CREATE INDEX jobs_due ON jobs (provider, lane, due_ms, pk) WHERE owner IS NULL AND state IN ('queued', 'waiting');
CREATE INDEX jobs_owner ON jobs (owner) WHERE owner IS NOT NULL;
CREATE INDEX jobs_deadline ON jobs (deadline_ms)
    WHERE deadline_ms IS NOT NULL AND owner IS NULL AND state IN ('queued', 'waiting');
CREATE INDEX jobs_finished ON jobs (state, finished_ms) WHERE finished_ms IS NOT NULL;

CREATE TABLE attempts (
    job_pk BIGINT NOT NULL,
    run BIGINT NOT NULL,
    n BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    -- Label of the key.
    key TEXT NOT NULL,
    status BIGINT,
    outcome TEXT NOT NULL,
    latency_ms BIGINT NOT NULL,
    error TEXT,
    PRIMARY KEY (job_pk, run, n)
);

-- One completion for each run of a job: the unique index is the promise.
CREATE TABLE events (
    pk BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL,
    job_pk BIGINT NOT NULL,
    run BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('succeeded', 'dead', 'expired', 'cancelled')),
    at_ms BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    reason TEXT,
    error TEXT,
    -- The provider's last answer; no status: there was none.
    status BIGINT,
    headers TEXT,
    content_type TEXT,
    truncated BOOLEAN NOT NULL DEFAULT FALSE,
    body BYTEA
);
CREATE UNIQUE INDEX events_run ON events (job_pk, run);

CREATE TABLE endpoints (
    pk BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL,
    tenant TEXT NOT NULL DEFAULT '',
    url TEXT NOT NULL,
    -- Made from a bare callback URL.
    implicit BOOLEAN NOT NULL,
    enabled BOOLEAN NOT NULL DEFAULT TRUE,
    disabled_reason TEXT,
    failing_since_ms BIGINT,
    -- JSON: the events it wants (all where it is NULL), its signing secrets (sealed).
    events TEXT,
    secrets TEXT,
    created_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX endpoints_id ON endpoints (id);
CREATE UNIQUE INDEX endpoints_implicit ON endpoints (tenant, url) WHERE implicit;

CREATE TABLE deliveries (
    pk BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_pk BIGINT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('webhook', 'amqp')),
    endpoint_pk BIGINT,
    state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'failed', 'disabled')),
    attempts BIGINT NOT NULL DEFAULT 0,
    -- While it is claimed: when the claim lapses.
    due_ms BIGINT NOT NULL,
    owner TEXT,
    epoch BIGINT NOT NULL DEFAULT 0,
    created_ms BIGINT NOT NULL,
    finished_ms BIGINT
);
CREATE INDEX deliveries_due ON deliveries (due_ms, pk) WHERE state = 'pending';
CREATE INDEX deliveries_owner ON deliveries (owner) WHERE owner IS NOT NULL;
CREATE INDEX deliveries_event ON deliveries (event_pk);
-- What was held back for an endpoint that is disabled.
CREATE INDEX deliveries_disabled ON deliveries (endpoint_pk, pk) WHERE state = 'disabled';

CREATE TABLE delivery_attempts (
    delivery_pk BIGINT NOT NULL,
    n BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    status BIGINT,
    latency_ms BIGINT NOT NULL,
    error TEXT,
    PRIMARY KEY (delivery_pk, n)
);

CREATE TABLE dead_letters (
    pk BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- NULL: a message that never became a job.
    job_pk BIGINT,
    -- The job's, or its own.
    id TEXT NOT NULL,
    tenant TEXT NOT NULL DEFAULT '',
    provider TEXT,
    lane TEXT,
    reason TEXT NOT NULL,
    error TEXT,
    raw BYTEA,
    headers TEXT,
    dead_ms BIGINT NOT NULL,
    -- Empty again when it dies again.
    replayed_ms BIGINT
);
CREATE UNIQUE INDEX dead_letters_id ON dead_letters (id, tenant);
CREATE UNIQUE INDEX dead_letters_job ON dead_letters (job_pk) WHERE job_pk IS NOT NULL;
CREATE INDEX dead_letters_age ON dead_letters (dead_ms);

-- Processes that hold jobs. Their heartbeats use the database's clock.
CREATE TABLE owners (
    id TEXT NOT NULL PRIMARY KEY,
    role TEXT NOT NULL,
    started_ms BIGINT NOT NULL,
    seen_ms BIGINT NOT NULL
);

-- Queues turn over fast: vacuum before dead rows pile up at the head of an index.
ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE deliveries SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
