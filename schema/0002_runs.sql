-- The live runs: what producers insert into. A settled run leaves this table for run_history (0003), so that it stays
-- small whatever is kept. Every table has a primary key, all text is text + CHECK, and nothing outside of this schema
-- is referenced, so that one schema can be moved as a whole.

CREATE TABLE {schema}.runs (
    run_id           uuid        NOT NULL,
    -- fixed widths first: no padding between them
    run_at           timestamptz NOT NULL DEFAULT now(),
    created_at       timestamptz NOT NULL DEFAULT now(),
    expires_at       timestamptz,
    started_at       timestamptz,
    lease_expires_at timestamptz,
    lease_token      bigint      NOT NULL DEFAULT 0,
    timeout          interval,
    priority         smallint    NOT NULL DEFAULT 0,
    max_attempts     smallint,
    attempt          smallint    NOT NULL DEFAULT 0,
    is_shadow        boolean     NOT NULL DEFAULT false,
    is_limited       boolean     NOT NULL DEFAULT false,  -- it holds places of limits (0012)
    state            text COLLATE "C" NOT NULL DEFAULT 'pending',
    kind             text COLLATE "C" NOT NULL,
    project_id       text COLLATE "C" NOT NULL DEFAULT 'default',
    lease_owner      text COLLATE "C",
    shadow_by        text COLLATE "C",
    waits_for        text COLLATE "C",                     -- null: it may be claimed once it is due
    idempotency_key  text COLLATE "C",
    concurrency_key  text COLLATE "C",
    payload          jsonb       NOT NULL DEFAULT '{}',
    headers          jsonb       NOT NULL DEFAULT '{}',
    errors           jsonb       NOT NULL DEFAULT '[]',
    progress         jsonb,
    replay_of        uuid,  -- the settled run that this one repeats; last, where a null costs nothing
    parent_id        uuid,  -- the run that started it, which is told of its end (0021)
    version          text COLLATE "C",  -- of the handler that executes a copy (0024)

    CONSTRAINT runs_pkey PRIMARY KEY (run_id),
    CONSTRAINT kind_has_1_to_200_characters CHECK (char_length(kind) BETWEEN 1 AND 200),
    CONSTRAINT project_id_has_1_to_200_characters CHECK (char_length(project_id) BETWEEN 1 AND 200),
    CONSTRAINT idempotency_key_has_1_to_500_characters CHECK (char_length(idempotency_key) BETWEEN 1 AND 500),
    CONSTRAINT concurrency_key_has_1_to_500_characters CHECK (char_length(concurrency_key) BETWEEN 1 AND 500),
    -- In indexes it stands beside these two, and an index takes no more.
    CONSTRAINT concurrency_key_has_at_most_2600_bytes_with_kind_and_project_id CHECK (
        concurrency_key IS NULL OR octet_length(concurrency_key) + octet_length(kind) + octet_length(project_id) <= 2600),
    CONSTRAINT run_at_is_between_1970_and_9999
        CHECK (run_at >= '1970-01-01 00:00:00+00' AND run_at < '10000-01-01 00:00:00+00'),
    CONSTRAINT expires_at_is_between_1970_and_9999
        CHECK (expires_at >= '1970-01-01 00:00:00+00' AND expires_at < '10000-01-01 00:00:00+00'),
    CONSTRAINT timeout_is_above_0_and_at_most_365_days CHECK (timeout > '0' AND timeout <= '365 days'),
    CONSTRAINT headers_is_an_object CHECK (jsonb_typeof(headers) = 'object'),
    CONSTRAINT errors_is_an_array CHECK (jsonb_typeof(errors) = 'array'),
    CONSTRAINT shadow_by_is_run_worker_or_mirror CHECK (
        shadow_by IS NULL OR (is_shadow AND shadow_by IN ('run', 'worker', 'mirror'))),
    -- For a key before it begins; for its children or an event in the middle of its handler, without a slot. A copy waits for
    -- 'shadow' throughout, so that it is where no claim of live runs reads whoever gives it back.
    CONSTRAINT waits_for_something_while_pending CHECK (
        waits_for IS NULL OR (waits_for = 'shadow' AND is_shadow AND version IS NOT NULL) OR (state = 'pending' AND (
            waits_for IN ('children', 'event') OR (waits_for = 'key' AND concurrency_key IS NOT NULL)))),
    CONSTRAINT version_is_set_on_copies CHECK (version IS NULL OR waits_for = 'shadow'),
    CONSTRAINT is_limited_while_running CHECK (NOT is_limited OR state = 'running'),
    CONSTRAINT max_attempts_is_at_least_1 CHECK (max_attempts >= 1),
    CONSTRAINT attempt_is_within_max_attempts CHECK (attempt >= 0 AND attempt <= max_attempts),
    -- The live half of the state machine: a lease is held while a run is running, and only then.
    CONSTRAINT lease_is_held_while_running CHECK (
        CASE state
            WHEN 'pending' THEN lease_owner IS NULL AND lease_expires_at IS NULL AND started_at IS NULL
            WHEN 'running' THEN lease_owner IS NOT NULL AND lease_expires_at IS NOT NULL AND started_at IS NOT NULL
                AND lease_token >= 1 AND attempt >= 1 AND max_attempts IS NOT NULL
            ELSE false
        END)
) WITH (
    -- The net under the leader's own vacuum: look as often as autovacuum looks at all, and never truncate,
    -- since truncation takes an ACCESS EXCLUSIVE lock that claims would wait for.
    autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.0, autovacuum_analyze_threshold = 50000, vacuum_truncate = false
);

-- uuid v7, so that ids are in the order of insertion. PostgreSQL 18 has it; before that, 48 bits of milliseconds, then
-- 12 bits of the millisecond's fraction (RFC 9562, section 6.2, method 3), then chance.
DO $do$
BEGIN
    IF current_setting('server_version_num')::int >= 180000 THEN
        CREATE FUNCTION {schema}.uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE RETURN uuidv7();
        ALTER TABLE {schema}.runs ALTER COLUMN run_id SET DEFAULT uuidv7();
    ELSE
        CREATE FUNCTION {schema}.uuid7() RETURNS uuid LANGUAGE plpgsql VOLATILE PARALLEL SAFE
        SET search_path = pg_catalog, pg_temp AS $body$
        DECLARE
            us bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
        BEGIN
            RETURN encode(overlay(uuid_send(gen_random_uuid())
                PLACING substring(int8send(us / 1000) FROM 3) || int2send((28672 + us % 1000 * 4096 / 1000)::int2)
                FROM 1 FOR 8), 'hex')::uuid;
        END $body$;
        ALTER TABLE {schema}.runs ALTER COLUMN run_id SET DEFAULT {schema}.uuid7();
    END IF;
END $do$;

-- The claim's index. Its first three columns are a *lane*; a claim skips from lane to lane and reads each from its
-- head, so that rows of other kinds, of other projects or of the future cost it one step a lane and not one a row.
-- A lane's rank: the sign turns "higher priority first" into ascending order, for a row comparison to skip by; its last
-- bit gives runs with a concurrency key lanes of their own. Who waits for a key is not in the index at all.
CREATE INDEX runs_ready ON {schema}.runs (kind, project_id, {rank}, run_at, run_id)
    WHERE state = 'pending' AND waits_for IS NULL;

-- Who waits for a concurrency key, of each kind in the order in which it gets it.
CREATE INDEX runs_waiting ON {schema}.runs (project_id, concurrency_key, kind, (-priority::int), run_at, run_id)
    WHERE waits_for = 'key';

-- The reaper's. Not "WHERE state = 'running'": on a queue statistics are always stale, and the planner takes such an
-- index for empty and scans it in place of the primary key.
CREATE INDEX runs_lease ON {schema}.runs (lease_expires_at) WHERE lease_expires_at IS NOT NULL;

-- For runs that may no longer be started; only those that have the column pay for it.
CREATE INDEX runs_expires_at ON {schema}.runs (expires_at) WHERE expires_at IS NOT NULL AND state = 'pending';

-- The key of a run that was inserted as a shadow run holds nothing; that of one which its worker executes in shadow does.
CREATE UNIQUE INDEX runs_idempotency_key ON {schema}.runs (project_id, kind, idempotency_key)
    WHERE idempotency_key IS NOT NULL AND (NOT is_shadow OR shadow_by = 'worker');

-- What must be the same for the whole fleet.
CREATE TABLE {schema}.settings (
    name       text        NOT NULL PRIMARY KEY,
    value      jsonb       NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT value_is_in_range CHECK (  -- BETWEEN last: so it reads the same after a dump and a restore
        CASE name
            WHEN 'reaper_interval_s' THEN (value #>> '{}')::numeric BETWEEN 0.1 AND 86400
            WHEN 'max_payload_bytes' THEN (value #>> '{}')::numeric % 1 = 0
                AND (value #>> '{}')::numeric BETWEEN 2 AND 268435456
            WHEN 'max_result_bytes' THEN (value #>> '{}')::numeric % 1 = 0
                AND (value #>> '{}')::numeric BETWEEN 2 AND 268435456
            WHEN 'idempotency_window_s' THEN (value #>> '{}')::numeric BETWEEN 0 AND 31622400
            WHEN 'history_retention_days' THEN (value #>> '{}')::numeric % 1 = 0
                AND (value #>> '{}')::numeric BETWEEN 1 AND 36500
            ELSE false
        END)
);
INSERT INTO {schema}.settings (name, value) VALUES
    ('reaper_interval_s', '60'), ('max_payload_bytes', '1048576'), ('max_result_bytes', '1048576'),
    ('idempotency_window_s', '86400'), ('history_retention_days', '30');
