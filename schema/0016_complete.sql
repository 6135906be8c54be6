-- For handlers that write by another driver than the worker's: their writes and their run's completion in one
-- transaction of their own. Fenced: 55000 where the run is another's by now, and nothing may be committed then. The worker
-- finds the run settled under its own lease.
CREATE FUNCTION {schema}.complete(run_id uuid, lease_token bigint, result jsonb DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    kept integer;
BEGIN
    IF octet_length(complete.result::text)
       > (SELECT (s.value #>> '{}')::numeric FROM {schema}.settings AS s WHERE s.name = 'max_result_bytes') THEN
        RAISE EXCEPTION 'the result has % bytes as text, more than max_result_bytes', octet_length(complete.result::text)
            USING ERRCODE = 'program_limit_exceeded', HINT = 'Put a reference into the result.';
    END IF;
    -- From here on the run is locked: were this process frozen now, the server ends its session when nothing more comes,
    -- or nobody could take the run over.
    PERFORM set_config('idle_in_transaction_session_timeout', '5s', true);
    WITH gone AS (
        DELETE FROM {schema}.runs AS r
         WHERE r.run_id = complete.run_id AND r.lease_token = complete.lease_token AND r.state = 'running' AND NOT r.is_shadow
        RETURNING *
    ), freed AS (
        DELETE FROM {schema}.places AS p
         WHERE p.run_id = (SELECT g.run_id FROM gone AS g WHERE g.is_limited) AND NOT p.lingers
    ), moved AS (
        INSERT INTO {schema}.run_history (run_id, replay_of, run_at, created_at, expires_at, started_at, lease_token, timeout,
            priority, max_attempts, attempt, is_shadow, state, kind, project_id, settled_by, shadow_by, idempotency_key,
            concurrency_key, payload, headers, errors, progress, result)
        SELECT run_id, replay_of, run_at, created_at, expires_at, started_at, lease_token, timeout,
            priority, max_attempts, attempt, is_shadow, 'completed', kind, project_id, lease_owner, shadow_by, idempotency_key,
            concurrency_key, payload, headers, errors, progress, complete.result
          FROM gone
        RETURNING 1
    )
    SELECT count(*) INTO kept FROM moved;
    IF kept = 0 THEN
        IF EXISTS (SELECT FROM {schema}.runs AS r
                    WHERE r.run_id = complete.run_id AND r.lease_token = complete.lease_token AND r.is_shadow) THEN
            RAISE EXCEPTION 'run % is a shadow run, which has no effects', complete.run_id
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Roll back, and return: run.is_shadow tells.';
        END IF;
        RAISE EXCEPTION 'run % is not held under lease_token % any more', complete.run_id, complete.lease_token
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Roll back: another worker executes it, or it was cancelled.';
    END IF;
    IF EXISTS (SELECT FROM {schema}.mirrors) THEN
        PERFORM {schema}.mirror(ARRAY[h.run_id], ARRAY[h.kind], ARRAY[h.project_id])
           FROM {schema}.run_history AS h WHERE h.run_id = complete.run_id AND h.finished_at = now();
    END IF;
    IF EXISTS (SELECT FROM {schema}.waiters) THEN
        PERFORM {schema}.tell_waiters(ARRAY[complete.run_id]);
    END IF;
END $$;
