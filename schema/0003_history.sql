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
    replay_of        uuid,

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
       NULL::text COLLATE "C" AS settled_by, replay_of, waits_for
  FROM {schema}.runs
UNION ALL
SELECT run_id, project_id, kind, state, payload, priority, run_at, attempt, max_attempts, timeout, expires_at,
       idempotency_key, concurrency_key, is_shadow,
       CASE WHEN is_shadow THEN coalesce(shadow_by, 'run') END AS shadow_by, headers,
       NULL::text COLLATE "C", lease_token, NULL::timestamptz, created_at, started_at, progress, errors,
       finished_at, result, effects, error_code,
       settled_by, replay_of, NULL::text COLLATE "C"
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

-- How long settled runs are kept, where it is not history_retention_days: those of a kind, of a project, or of a kind of a
-- project. Of several the narrowest holds: a kind of a project, then a kind, then a project. Days are UTC's: what finished
-- on a day is kept until so many more have passed.
CREATE TABLE {schema}.retention (
    kind       text COLLATE "C" NOT NULL DEFAULT '',  -- empty: every kind
    project_id text COLLATE "C" NOT NULL DEFAULT '',  -- empty: every project
    days       integer     NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT retention_pkey PRIMARY KEY (kind, project_id),
    CONSTRAINT kind_has_at_most_200_characters CHECK (char_length(kind) <= 200),
    CONSTRAINT project_id_has_at_most_200_characters CHECK (char_length(project_id) <= 200),
    CONSTRAINT kind_or_project_id_is_named CHECK (kind <> '' OR project_id <> ''),
    CONSTRAINT days_is_between_1_and_36500 CHECK (days BETWEEN 1 AND 36500)
);

-- Keep these for so many days; null: as long as everything else is kept.
CREATE FUNCTION {schema}.set_retention(days integer, kind text DEFAULT NULL, project_id text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF NOT {schema}.caller_sees(coalesce(set_retention.project_id, '')) THEN
        RAISE EXCEPTION 'this role may not say how long runs of % are kept',
            coalesce('the project "' || set_retention.project_id || '"', 'every project')
            USING ERRCODE = 'insufficient_privilege', HINT = 'The owner of the schema binds roles by bind_role().';
    END IF;
    IF set_retention.days IS NULL THEN
        DELETE FROM {schema}.retention AS r
         WHERE r.kind = coalesce(set_retention.kind, '') AND r.project_id = coalesce(set_retention.project_id, '');
        RETURN;
    END IF;
    INSERT INTO {schema}.retention AS r (kind, project_id, days)
    VALUES (coalesce(set_retention.kind, ''), coalesce(set_retention.project_id, ''), set_retention.days)
    ON CONFLICT ON CONSTRAINT retention_pkey DO UPDATE SET days = excluded.days, changed_at = now();
END $$;

-- The days of which something may have to go: `partition` in which they lie, `is_over` if history_retention_days have
-- passed, `is_kept` if there is still something in it that must stay nevertheless.
CREATE FUNCTION {schema}.ended_days() RETURNS TABLE (day date, partition regclass, is_over boolean, is_kept boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today         date    := (now() AT TIME ZONE 'UTC')::date;
    days          integer := (SELECT (s.value #>> '{}')::numeric::integer FROM {schema}.settings AS s
                               WHERE s.name = 'history_retention_days');
    least_days    integer := least(days, (SELECT min(r.days) FROM {schema}.retention AS r));
    greatest_days integer := greatest(days, (SELECT max(r.days) FROM {schema}.retention AS r));
BEGIN
    FOR day, partition IN
        SELECT to_date(right(c.relname, 8), 'YYYYMMDD'), c.oid::regclass
          FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
         WHERE i.inhparent = '{schema}.run_history'::regclass AND c.relname ~ '^run_history_\d{8}$'
           AND to_date(right(c.relname, 8), 'YYYYMMDD') < today - least_days
         ORDER BY c.relname
    LOOP
        is_over := day < today - days;
        is_kept := false;
        IF is_over AND day >= today - greatest_days THEN
            EXECUTE format(
                'SELECT EXISTS (SELECT FROM %s AS h '
                'LEFT JOIN {schema}.retention AS b ON b.kind = h.kind AND b.project_id = h.project_id '
                'LEFT JOIN {schema}.retention AS k ON k.kind = h.kind AND k.project_id = '''' '
                'LEFT JOIN {schema}.retention AS p ON p.kind = '''' AND p.project_id = h.project_id '
                'WHERE coalesce(b.days, k.days, p.days) >= $1)', partition)
               INTO is_kept USING today - day;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- Takes no argument: what may be dropped is what the retention kept in the database says, whoever calls.
CREATE FUNCTION {schema}.drop_expired_partitions() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    partition regclass;
    dropped   integer := 0;
BEGIN
    -- Who says at this moment that something is to be kept must not come too late.
    LOCK TABLE {schema}.retention IN SHARE MODE;
    FOR partition IN SELECT e.partition FROM {schema}.ended_days() AS e WHERE e.is_over AND NOT e.is_kept LOOP
        EXECUTE format('DROP TABLE %s', partition);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;

-- What by its own retention is over while its day stays, row by row, in so many pages of the day's table from this one on;
-- without a day, in the default partition. `next_page` is null at the end. A dry run counts and deletes nothing.
CREATE FUNCTION {schema}.delete_expired(
    day date, from_page bigint DEFAULT 0, pages integer DEFAULT 256, dry_run boolean DEFAULT false,
    OUT deleted bigint, OUT next_page bigint, OUT all_pages bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    place regclass := coalesce('{schema}.run_history_' || to_char(day, 'YYYYMMDD'), '{schema}.run_history_default')::regclass;
    late  text := format(
        'SELECT h.ctid FROM %s AS h '
        'LEFT JOIN {schema}.retention AS b ON b.kind = h.kind AND b.project_id = h.project_id '
        'LEFT JOIN {schema}.retention AS k ON k.kind = h.kind AND k.project_id = '''' '
        'LEFT JOIN {schema}.retention AS p ON p.kind = '''' AND p.project_id = h.project_id '
        'WHERE h.ctid >= $1 AND h.ctid < $2 AND (h.finished_at AT TIME ZONE ''UTC'')::date '
        '< (now() AT TIME ZONE ''UTC'')::date - coalesce(b.days, k.days, p.days, $3)', place);
    days  integer := (SELECT (s.value #>> '{}')::numeric::integer FROM {schema}.settings AS s
                       WHERE s.name = 'history_retention_days');
BEGIN
    all_pages := pg_relation_size(place) / current_setting('block_size')::integer;
    EXECUTE CASE WHEN dry_run THEN format('SELECT count(*) FROM (%s) AS l', late) ELSE format(
        'WITH late AS MATERIALIZED (%s FOR UPDATE OF h SKIP LOCKED), gone AS ('
        'DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT ctid FROM late)) RETURNING 1) SELECT count(*) FROM gone', late, place) END
       INTO deleted
      USING format('(%s,0)', from_page)::tid, format('(%s,0)', least(from_page + pages, 4294967295))::tid, days;
    next_page := CASE WHEN from_page + pages < all_pages THEN from_page + pages END;
END $$;

SELECT {schema}.make_partitions();
