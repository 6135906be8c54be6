-- Many runs at once, by what they have in common. Each call is one bounded batch, committed by its caller: who is stopped
-- between two has lost nothing, and goes on by calling again. No call waits for a run that somebody has locked: that one
-- is passed over.

-- The live runs that fit, in the order of their ids. Null: any. Read along an index in that order, and never sorted: each
-- batch goes on where the last one ended.
CREATE FUNCTION {schema}.live_matching(
    kind text DEFAULT NULL, project_id text DEFAULT NULL, state text DEFAULT NULL, created_after timestamptz DEFAULT NULL,
    created_before timestamptz DEFAULT NULL, behind uuid DEFAULT NULL, max_runs integer DEFAULT NULL
) RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET enable_sort = off AS $$
#variable_conflict use_column
DECLARE
    sees_all boolean := NOT (SELECT c.relrowsecurity FROM pg_class AS c WHERE c.oid = '{schema}.runs'::regclass);
BEGIN
    RETURN QUERY
    SELECT r.run_id FROM {schema}.runs AS r
     WHERE (live_matching.behind IS NULL OR r.run_id > live_matching.behind)
       AND (live_matching.kind IS NULL OR r.kind = live_matching.kind)
       AND (live_matching.project_id IS NULL OR r.project_id = live_matching.project_id)
       AND (live_matching.state IS NULL OR r.state = live_matching.state)
       AND (live_matching.created_after IS NULL OR r.created_at >= live_matching.created_after)
       AND (live_matching.created_before IS NULL OR r.created_at < live_matching.created_before)
       AND (sees_all OR {schema}.caller_sees(r.project_id))
     ORDER BY r.run_id LIMIT live_matching.max_runs;
END $$;

-- pending or running -> cancelled, as cancel() does it. `done` is how many it did; `last` where to go on, null at the end.
CREATE FUNCTION {schema}.cancel_runs(
    kind text DEFAULT NULL, project_id text DEFAULT NULL, state text DEFAULT NULL, created_after timestamptz DEFAULT NULL,
    created_before timestamptz DEFAULT NULL, behind uuid DEFAULT NULL, max_runs integer DEFAULT 1000,
    OUT done integer, OUT skipped integer, OUT last uuid
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
DECLARE
    ids         uuid[];
    mine        uuid[];
    was_running uuid[];
    was_limited uuid[];
    under       bigint[];
    projects    text[];  -- of those that had a key and were not waiting for it
    keys        text[];
BEGIN
    ids := ARRAY(SELECT {schema}.live_matching(cancel_runs.kind, cancel_runs.project_id, cancel_runs.state,
        cancel_runs.created_after, cancel_runs.created_before, cancel_runs.behind, cancel_runs.max_runs));
    -- Nothing of what they were found by can change, but the state.
    mine := ARRAY(SELECT r.run_id FROM {schema}.runs AS r
                   WHERE r.run_id = ANY (ids) AND (cancel_runs.state IS NULL OR r.state = cancel_runs.state)
                     FOR UPDATE SKIP LOCKED);
    WITH gone AS (
        DELETE FROM {schema}.runs AS r WHERE r.run_id = ANY (mine) RETURNING *
    ), moved AS (
        INSERT INTO {schema}.run_history (run_id, replay_of, run_at, created_at, expires_at, started_at, lease_token, timeout,
            priority, max_attempts, attempt, is_shadow, state, kind, project_id, shadow_by, idempotency_key,
            concurrency_key, payload, headers, errors, progress)
        SELECT run_id, replay_of, run_at, created_at, expires_at, started_at, lease_token, timeout,
            priority, max_attempts, attempt, is_shadow, 'cancelled', kind, project_id, shadow_by, idempotency_key,
            concurrency_key, payload, headers, errors, progress
          FROM gone
    )
    SELECT count(*), array_agg(run_id) FILTER (WHERE state = 'running'), array_agg(run_id) FILTER (WHERE is_limited),
           array_agg(lease_token) FILTER (WHERE is_limited),
           array_agg(project_id) FILTER (WHERE concurrency_key IS NOT NULL AND state = 'pending' AND waits_for IS NULL),
           array_agg(concurrency_key) FILTER (WHERE concurrency_key IS NOT NULL AND state = 'pending' AND waits_for IS NULL)
      INTO done, was_running, was_limited, under, projects, keys FROM gone;
    IF was_limited IS NOT NULL THEN  -- their keys and places stay taken until their handlers have ended
        DELETE FROM {schema}.places AS p WHERE p.run_id = ANY (was_limited) AND p.place >= 1000000 AND NOT p.lingers;
        UPDATE {schema}.places AS p SET lingers = true, lease_token = l.lease_token
          FROM unnest(was_limited, under) AS l (run_id, lease_token) WHERE p.run_id = l.run_id AND NOT p.lingers;
    END IF;
    IF keys IS NOT NULL THEN  -- it may have been their turn
        PERFORM {schema}.end_wait(k.project_id, k.key, count(*)::integer)
           FROM unnest(projects, keys) AS k (project_id, key) GROUP BY k.project_id, k.key;
    END IF;
    IF was_running IS NOT NULL AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', 'cancel:' || stopped::text) FROM unnest(was_running) AS stopped;
    END IF;
    IF EXISTS (SELECT FROM {schema}.waiters) THEN
        PERFORM {schema}.tell_waiters(mine);
    END IF;
    PERFORM {schema}.cancel_children(mine);
    skipped := cardinality(ids) - done;
    last := CASE WHEN cardinality(ids) = cancel_runs.max_runs THEN ids[cancel_runs.max_runs] END;
END $$;

-- The settled runs that fit, in the same way. `error` is what failed_groups() shows.
CREATE FUNCTION {schema}.settled_matching(
    kind text DEFAULT NULL, project_id text DEFAULT NULL, state text DEFAULT 'failed', error_code text DEFAULT NULL,
    error text DEFAULT NULL, finished_after timestamptz DEFAULT NULL, finished_before timestamptz DEFAULT NULL,
    behind uuid DEFAULT NULL, max_runs integer DEFAULT NULL
) RETURNS TABLE (run_id uuid, finished_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET enable_sort = off AS $$
#variable_conflict use_column
DECLARE
    sees_all boolean := NOT (SELECT c.relrowsecurity FROM pg_class AS c WHERE c.oid = '{schema}.runs'::regclass);
BEGIN
    RETURN QUERY
    SELECT h.run_id, h.finished_at FROM {schema}.run_history AS h
     WHERE (settled_matching.behind IS NULL OR h.run_id > settled_matching.behind)
       AND h.state = settled_matching.state AND (settled_matching.state = 'completed' OR h.state <> 'completed')
       AND (settled_matching.kind IS NULL OR h.kind = settled_matching.kind)
       AND (settled_matching.project_id IS NULL OR h.project_id = settled_matching.project_id)
       AND (settled_matching.error_code IS NULL OR h.error_code = settled_matching.error_code)
       AND (settled_matching.finished_after IS NULL OR h.finished_at >= settled_matching.finished_after)
       AND (settled_matching.finished_before IS NULL OR h.finished_at < settled_matching.finished_before)
       AND (settled_matching.error IS NULL OR {schema}.error_line(h.errors) = settled_matching.error)
       AND (sees_all OR {schema}.caller_sees(h.project_id))
     ORDER BY h.run_id LIMIT settled_matching.max_runs;
END $$;

-- settled -> pending, as retry() does it. Skipped is a run that is locked, one whose id or idempotency key another run
-- holds, the earlier one of an id that was given out twice, and one whose payload is larger than max_payload_bytes by now.
CREATE FUNCTION {schema}.retry_runs(
    kind text DEFAULT NULL, project_id text DEFAULT NULL, state text DEFAULT 'failed', error_code text DEFAULT NULL,
    error text DEFAULT NULL, finished_after timestamptz DEFAULT NULL, finished_before timestamptz DEFAULT NULL,
    behind uuid DEFAULT NULL, max_runs integer DEFAULT 1000,
    OUT done integer, OUT skipped integer, OUT last uuid
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
DECLARE
    ids       uuid[];
    times     timestamptz[];
    put       uuid[];
    max_bytes bigint := (SELECT (s.value #>> '{}')::numeric::bigint FROM {schema}.settings AS s
                          WHERE s.name = 'max_payload_bytes');
BEGIN
    SELECT coalesce(array_agg(m.run_id), '{}'), coalesce(array_agg(m.finished_at), '{}') INTO ids, times
      FROM {schema}.settled_matching(retry_runs.kind, retry_runs.project_id, retry_runs.state, retry_runs.error_code,
        retry_runs.error, retry_runs.finished_after, retry_runs.finished_before, retry_runs.behind, retry_runs.max_runs) AS m;
    WITH mine AS MATERIALIZED (
        SELECT h.* FROM unnest(ids, times) AS p (run_id, finished_at), LATERAL (
            SELECT i.* FROM {schema}.run_history AS i WHERE i.run_id = p.run_id AND i.finished_at = p.finished_at
               FOR UPDATE SKIP LOCKED) AS h
    ), inserted AS (
        INSERT INTO {schema}.runs (run_id, project_id, kind, payload, priority, max_attempts, timeout, expires_at,
            idempotency_key, concurrency_key, is_shadow, headers)
        SELECT run_id, project_id, kind, payload, priority, max_attempts, timeout,
               CASE WHEN expires_at > now() THEN expires_at END, idempotency_key, concurrency_key,
               is_shadow AND shadow_by IS DISTINCT FROM 'worker', headers
          FROM mine
         WHERE octet_length(payload::text) <= max_bytes
           AND (idempotency_key IS NULL OR (is_shadow AND shadow_by IS DISTINCT FROM 'worker')
                OR coalesce({schema}.key_holder(project_id, kind, idempotency_key), run_id) = run_id)
           AND NOT EXISTS (SELECT FROM {schema}.run_history AS l
                            WHERE l.run_id = mine.run_id AND l.finished_at > mine.finished_at)
        ON CONFLICT DO NOTHING
        RETURNING run_id)
    SELECT coalesce(array_agg(run_id), '{}') INTO put FROM inserted;
    UPDATE {schema}.runs AS r
       SET created_at = h.created_at, lease_token = h.lease_token, errors = h.errors, replay_of = h.replay_of,
           parent_id = {schema}.come_back(r.run_id)
      FROM unnest(ids, times) AS p (run_id, finished_at)
      JOIN {schema}.run_history AS h ON h.run_id = p.run_id AND h.finished_at = p.finished_at
     WHERE r.run_id = p.run_id AND p.run_id = ANY (put);
    DELETE FROM {schema}.run_history AS h USING unnest(ids, times) AS p (run_id, finished_at)
     WHERE h.run_id = p.run_id AND h.finished_at = p.finished_at AND p.run_id = ANY (put);
    DELETE FROM {schema}.steps AS s WHERE s.run_id = ANY (put);  -- they are executed again as well
    PERFORM {schema}.start_over(put);
    done := cardinality(put);
    skipped := cardinality(ids) - done;
    last := CASE WHEN cardinality(ids) = retry_runs.max_runs THEN ids[retry_runs.max_runs] END;
END $$;

-- What failed runs are grouped by: the first line of the last error's message, which begins with the exception's class,
-- without what differs from run to run.
CREATE FUNCTION {schema}.error_line(errors jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    line text := left(split_part(errors #>> '{-1,message}', E'\n', 1), 300);
BEGIN
    line := regexp_replace(line, '(?<!\w)''[^'']*''(?!\w)|"[^"]*"', '…', 'g');
    line := regexp_replace(line, '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\m(0x)?[0-9a-f]*[0-9][0-9a-f]*\M', '#', 'gi');
    RETURN coalesce(left(regexp_replace(line, '\d+', '#', 'g'), 200), '');
END $$;

-- The failed by kind, code and error, the most frequent first; `run_id` is the one that failed last. Of the newest failed
-- runs only, since each one's errors are read.
CREATE TYPE {schema}.failed_group AS (
    kind text, error_code text, error text, runs bigint, first_at timestamptz, last_at timestamptz, run_id uuid
);
CREATE FUNCTION {schema}.failed_groups(
    kind text DEFAULT NULL, project_id text DEFAULT NULL, error_code text DEFAULT NULL, finished_after timestamptz DEFAULT NULL,
    finished_before timestamptz DEFAULT NULL, newest integer DEFAULT 10000
) RETURNS SETOF {schema}.failed_group
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET enable_sort = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH failed AS (
        SELECT h.kind, h.error_code, h.errors, h.finished_at, h.run_id FROM {schema}.run_history AS h
         WHERE h.state = 'failed'
           AND (failed_groups.kind IS NULL OR h.kind = failed_groups.kind)
           AND (failed_groups.project_id IS NULL OR h.project_id = failed_groups.project_id)
           AND (failed_groups.error_code IS NULL OR h.error_code = failed_groups.error_code)
           AND (failed_groups.finished_after IS NULL OR h.finished_at >= failed_groups.finished_after)
           AND (failed_groups.finished_before IS NULL OR h.finished_at < failed_groups.finished_before)
         ORDER BY h.run_id DESC LIMIT failed_groups.newest)
    SELECT f.kind, f.error_code, {schema}.error_line(f.errors), count(*), min(f.finished_at), max(f.finished_at),
           (array_agg(f.run_id ORDER BY f.finished_at DESC, f.run_id DESC))[1]
      FROM failed AS f GROUP BY 1, 2, 3 ORDER BY 4 DESC, 6 DESC;
END $$;
