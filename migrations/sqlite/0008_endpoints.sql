-- Registered webhook endpoints, completions over RabbitMQ, and deliveries that are sent again.
--
-- The same as ../postgres/0008_endpoints.sql; a test compares the two.

ALTER TABLE endpoints ADD COLUMN description TEXT;
-- 'all': every completion of its tenant that `events` lets through; 'named': those of jobs that name it.
ALTER TABLE endpoints ADD COLUMN subscribe TEXT NOT NULL DEFAULT 'named' CHECK (subscribe IN ('all', 'named'));
CREATE INDEX endpoints_subscribers ON endpoints (tenant) WHERE subscribe = 'all';

-- event_pk 0: a test event of its endpoint.
-- Attempts before it was last asked to be sent again: the schedule begins after them.
ALTER TABLE deliveries ADD COLUMN attempts_before BIGINT NOT NULL DEFAULT 0;
-- Of kind amqp: the queue it answers to; NULL: the exchange of events.
ALTER TABLE deliveries ADD COLUMN reply_to TEXT;
-- By kind first: while the broker is away its deliveries pile up, and stand in no webhook's way.
DROP INDEX deliveries_due;
CREATE INDEX deliveries_due ON deliveries (kind, due_ms, pk) WHERE state = 'pending';
DROP INDEX deliveries_disabled;
CREATE INDEX deliveries_unsettled ON deliveries (endpoint_pk, pk) WHERE state IN ('failed', 'disabled');
CREATE INDEX deliveries_endpoint ON deliveries (endpoint_pk, pk) WHERE endpoint_pk IS NOT NULL;

-- What an endpoint missed and is to get again: the last order of each, and how far that is.
CREATE TABLE resends (
    endpoint_pk BIGINT NOT NULL PRIMARY KEY,
    since_ms BIGINT NOT NULL,
    -- Those that were delivered, too.
    everything BOOLEAN NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'stopped')),
    resent BIGINT NOT NULL DEFAULT 0,
    -- Deliveries up to that row are done, and those after the last one are left alone.
    position BIGINT NOT NULL DEFAULT 0,
    last_pk BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    finished_ms BIGINT
);
CREATE INDEX resends_running ON resends (endpoint_pk) WHERE state = 'running';
