-- Settled runs, partitioned by the day they finished, so that retention is the drop of a table and never a DELETE.

CREATE TABLE {schema}.run_history (
    run_id           uuid        NOT NULL,
    run_at           timestamptz NOT NULL,
    created_at       timestamptz NOT NULL,
    expires_at       timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz NOT NULL DEFAULT now(),
    lease_token      bigint      NOT NULL,
    timeout          interval,
    priority         smallint    NOT NULL,
    max_attempts     smallint,
    attempt          smallint    NOT NULL,
    is_shadow        boolean     NOT NULL,
    state            text COLLATE "C" NOT NULL,
    kind             text COLLATE "C" NOT NULL,
    project_id       text COLLATE "C" NOT NULL,
    settled_by       text COLLATE "C",  -- the lease_owner that settled it; null: cancelled from outside
    shadow_by        text COLLATE "C",
    idempotency_key  text COLLATE "C",
    concurrency_key  text COLLATE "C",
    error_code       text COLLATE "C",
    payload          jsonb       NOT NULL,
    headers          jsonb       NOT NULL,
    errors           jsonb       NOT NULL,
    progress         jsonb,
    result           jsonb,
    effects          jsonb,

    CONSTRAINT run_history_pkey PRIMARY KEY (run_id, finished_at),
    CONSTRAINT state_is_terminal CHECK (state IN ('completed', 'failed', 'cancelled')),
    CONSTRAINT error_code_is_set_on_failed_runs CHECK ((state = 'failed') = (error_code IS NOT NULL)),
    CONSTRAINT result_is_set_on_completed_runs_only CHECK (state = 'completed' OR result IS NULL)
) PARTITION BY RANGE (finished_at);

CREATE INDEX run_history_finished_at ON {schema}.run_history USING brin (finished_at);
CREATE INDEX run_history_kind ON {schema}.run_history (kind, run_id);
CREATE INDEX run_history_not_completed ON {schema}.run_history (run_id) WHERE state <> 'completed';

-- The net: a settle never fails for want of a day's partition.
CREATE TABLE {schema}.run_history_default PARTITION OF {schema}.run_history DEFAULT;

-- Every run, live and settled: what readers use.
CREATE VIEW {schema}.all_runs AS
SELECT run_id, project_id, kind, state, payload, priority, run_at, attempt, max_attempts, timeout, expires_at,
       idempotency_key, concurrency_key, is_shadow,
       CASE WHEN is_shadow THEN coalesce(shadow_by, 'run') END AS shadow_by, headers,
       lease_owner, lease_token, lease_expires_at, created_at, started_at, progress, errors,
       NULL::timestamptz AS finished_at, NULL::jsonb AS result, NULL::jsonb AS effects, NULL::text COLLATE "C" AS error_code,
       NULL::text COLLATE "C" AS settled_by, waits_for
  FROM {schema}.runs
UNION ALL
SELECT run_id, project_id, kind, state, payload, priority, run_at, attempt, max_attempts, timeout, expires_at,
       idempotency_key, concurrency_key, is_shadow,
       CASE WHEN is_shadow THEN coalesce(shadow_by, 'run') END AS shadow_by, headers,
       NULL::text COLLATE "C", lease_token, NULL::timestamptz, created_at, started_at, progress, errors,
       finished_at, result, effects, error_code,
       settled_by, NULL::text COLLATE "C"
  FROM {schema}.run_history;

-- Partitions are made a week ahead. CREATE .. PARTITION OF and DROP wait behind any open reader of history, and settles
-- would queue up behind them: so both give up after 200 ms (55P03), and the leader comes back later.
CREATE FUNCTION {schema}.make_partitions() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    first_day date := (now() AT TIME ZONE 'UTC')::date;
    day       date;
    made      integer := 0;
BEGIN
    FOR day IN SELECT first_day + n FROM generate_series(0, 7) AS n LOOP
        CONTINUE WHEN to_regclass(format('%I.%I', '{name}', 'run_history_' || to_char(day, 'YYYYMMDD'))) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE TABLE %I.%I PARTITION OF %I.run_history FOR VALUES FROM (%L) TO (%L)',
                '{name}', 'run_history_' || to_char(day, 'YYYYMMDD'), '{name}',
                to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
            IF (SELECT relrowsecurity FROM pg_class WHERE oid = '{schema}.run_history'::regclass) THEN
                EXECUTE format('ALTER TABLE %I.%I ENABLE ROW LEVEL SECURITY', '{name}', 'run_history_' || to_char(day, 'YYYYMMDD'));
            END IF;
            made := made + 1;
        EXCEPTION
            WHEN duplicate_table THEN NULL;  -- another made it meanwhile: what was wanted is there
            WHEN check_violation THEN NULL;  -- runs of that day are in the default partition already, and stay there
        END;
    END LOOP;
    RETURN made;
END $$;

-- Takes no argument: what may be dropped is what the retention kept in the database says, whoever calls.
CREATE FUNCTION {schema}.drop_expired_partitions() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    keep_from date := (now() AT TIME ZONE 'UTC')::date
        - (SELECT (value #>> '{}')::numeric::integer FROM {schema}.settings WHERE name = 'history_retention_days');
    partition regclass;
    dropped   integer := 0;
BEGIN
    FOR partition IN
        SELECT i.inhrelid::regclass FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
         WHERE i.inhparent = '{schema}.run_history'::regclass AND c.relname ~ '^run_history_\d{8}$'
           AND to_date(right(c.relname, 8), 'YYYYMMDD') < keep_from
         ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE %s', partition);
        dropped := dropped + 1;
    END LOOP;
    DELETE FROM {schema}.run_history_default WHERE finished_at < keep_from::timestamp AT TIME ZONE 'UTC';
    RETURN dropped;
END $$;

SELECT {schema}.make_partitions();
