-- What can be asked for from any driver. SECURITY DEFINER, so that a role may do exactly this and nothing else. Where
-- projects are separated (0008), runs of other projects are not there for it.

-- One more entry in `errors`, with the database's time: the last 50 are kept, and the first of them tells how many were
-- cut.
CREATE FUNCTION {schema}.with_error(errors jsonb, entry jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    cut integer;
BEGIN
    IF entry IS NULL THEN
        RETURN errors;
    END IF;
    errors := errors || jsonb_build_array(entry || jsonb_build_object('at',
        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')));
    IF jsonb_array_length(errors) <= 50 THEN
        RETURN errors;
    END IF;
    cut := coalesce((errors #>> '{0,cut}')::integer, 0);
    WHILE jsonb_array_length(errors) > 50 LOOP
        errors := errors - 0;
        cut := cut + 1;
    END LOOP;
    RETURN jsonb_set(errors, '{0,cut}', to_jsonb(cut));
END $$;

CREATE FUNCTION {schema}.enqueue(
    kind text, payload jsonb DEFAULT '{}', project_id text DEFAULT 'default', priority integer DEFAULT 0,
    run_at timestamptz DEFAULT now(), max_attempts integer DEFAULT NULL, timeout interval DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL, idempotency_key text DEFAULT NULL, concurrency_key text DEFAULT NULL,
    is_shadow boolean DEFAULT false, headers jsonb DEFAULT '{}', run_id uuid DEFAULT NULL,
    debounce interval DEFAULT NULL, debounce_at_most interval DEFAULT NULL, throttle interval DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    holder uuid;
    run    {schema}.runs;
BEGIN
    IF NOT {schema}.caller_sees(enqueue.project_id) THEN
        RAISE EXCEPTION 'this role may not enqueue for the project "%"', enqueue.project_id
            USING ERRCODE = 'insufficient_privilege', HINT = 'The owner of the schema binds roles by bind_role().';
    END IF;
    enqueue.run_id := coalesce(enqueue.run_id, {schema}.uuid7());
    IF coalesce(enqueue.debounce, enqueue.debounce_at_most, enqueue.throttle) IS NOT NULL THEN
        PERFORM {schema}.check_pace(
            enqueue.idempotency_key, enqueue.run_at, enqueue.debounce, enqueue.debounce_at_most, enqueue.throttle,
            enqueue.is_shadow);
    END IF;
    IF enqueue.debounce IS NOT NULL THEN
        run.run_id := enqueue.run_id;
        run.kind := enqueue.kind;
        run.payload := enqueue.payload;
        run.project_id := enqueue.project_id;
        run.priority := enqueue.priority;
        run.max_attempts := enqueue.max_attempts;
        run.timeout := enqueue.timeout;
        run.expires_at := enqueue.expires_at;
        run.idempotency_key := enqueue.idempotency_key;
        run.concurrency_key := enqueue.concurrency_key;
        run.is_shadow := enqueue.is_shadow;
        run.headers := enqueue.headers;
        run := {schema}.debounce(run, enqueue.debounce, enqueue.debounce_at_most);
        IF run.run_id <> enqueue.run_id THEN
            RETURN run.run_id;
        END IF;
        enqueue.run_at := run.run_at;
        enqueue.idempotency_key := run.idempotency_key;
    END IF;
    -- A key that another is taking at this moment is waited for, and then asked for again.
    WHILE enqueue.idempotency_key IS NOT NULL AND enqueue.debounce IS NULL AND NOT enqueue.is_shadow LOOP
        holder := {schema}.key_holder(enqueue.project_id, enqueue.kind, enqueue.idempotency_key);
        IF holder IS NOT NULL THEN
            RETURN holder;
        END IF;
        EXIT WHEN {schema}.hold_key(enqueue.project_id, enqueue.kind, enqueue.idempotency_key, enqueue.run_id,
                                    now() + enqueue.throttle);
    END LOOP;
    INSERT INTO {schema}.runs (run_id, kind, payload, project_id, priority, run_at, max_attempts, timeout,
        expires_at, idempotency_key, concurrency_key, is_shadow, headers)
    VALUES (enqueue.run_id, enqueue.kind, enqueue.payload, enqueue.project_id,
        enqueue.priority::smallint, enqueue.run_at, enqueue.max_attempts::smallint, enqueue.timeout,
        enqueue.expires_at, enqueue.idempotency_key, enqueue.concurrency_key, enqueue.is_shadow, enqueue.headers);
    RETURN enqueue.run_id;
END $$;

-- pending or running -> cancelled, here and now. A running handler hears of it; its later outcome finds no row.
CREATE FUNCTION {schema}.cancel(run_id uuid) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    was {schema}.runs;
BEGIN
    WITH gone AS (
        DELETE FROM {schema}.runs AS r WHERE r.run_id = cancel.run_id AND {schema}.caller_sees(r.project_id) RETURNING *
    ), moved AS (
        INSERT INTO {schema}.run_history (run_id, replay_of, run_at, created_at, expires_at, started_at, lease_token, timeout,
            priority, max_attempts, attempt, is_shadow, state, kind, project_id, shadow_by, idempotency_key,
            concurrency_key, payload, headers, errors, progress)
        SELECT run_id, replay_of, run_at, created_at, expires_at, started_at, lease_token, timeout,
            priority, max_attempts, attempt, is_shadow, 'cancelled', kind, project_id, shadow_by, idempotency_key,
            concurrency_key, payload, headers, errors, progress
          FROM gone
    )
    SELECT * INTO was FROM gone;
    IF NOT FOUND THEN
        IF EXISTS (SELECT FROM {schema}.run_history AS h
                    WHERE h.run_id = cancel.run_id AND {schema}.caller_sees(h.project_id)) THEN
            RAISE EXCEPTION 'run % is settled already', cancel.run_id USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        RAISE EXCEPTION 'no run has the id %', cancel.run_id USING ERRCODE = 'no_data_found';
    END IF;
    IF was.is_limited THEN  -- its key and its places stay taken until its handler has ended
        -- Of those that it was given when it was running already (0012, adopt) its worker knows nothing.
        DELETE FROM {schema}.places AS p WHERE p.run_id = cancel.run_id AND p.place >= 1000000 AND NOT p.lingers;
        UPDATE {schema}.places AS p SET lingers = true, lease_token = was.lease_token
         WHERE p.run_id = cancel.run_id AND NOT p.lingers;
    ELSIF was.concurrency_key IS NOT NULL AND was.state = 'pending' AND was.waits_for IS NULL THEN
        PERFORM {schema}.end_wait(was.project_id, was.concurrency_key, 1);  -- it may have been its turn
    END IF;
    IF was.state = 'running' AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', 'cancel:' || cancel.run_id::text);
    END IF;
    IF EXISTS (SELECT FROM {schema}.waiters) THEN
        PERFORM {schema}.tell_waiters(ARRAY[cancel.run_id]);
    END IF;
    PERFORM {schema}.cancel_children(ARRAY[cancel.run_id]);
    RETURN 'cancelled';
END $$;

-- A settled run goes back to pending under the same id. The lease token is carried along, so that no worker of an
-- earlier life can settle it. The INSERT has the producer's columns only, as the guard demands. Its steps (0017) are executed
-- again as well, and its children (0021) started again; with from_step only steps from this position on, and one more than are recorded keeps all.
-- With a payload that one takes the place of the old.
CREATE FUNCTION {schema}.retry(run_id uuid, from_step integer DEFAULT NULL, payload jsonb DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    old   {schema}.run_history;
    steps integer;
BEGIN
    IF EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = retry.run_id AND {schema}.caller_sees(r.project_id)) THEN
        RAISE EXCEPTION 'run % is live', retry.run_id USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Only a settled run can be retried.';
    END IF;
    DELETE FROM {schema}.run_history AS h
     WHERE h.run_id = retry.run_id
       AND h.finished_at = (SELECT max(l.finished_at) FROM {schema}.run_history AS l WHERE l.run_id = retry.run_id)
       AND {schema}.caller_sees(h.project_id)
    RETURNING * INTO old;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no run has the id %', retry.run_id USING ERRCODE = 'no_data_found';
    END IF;
    INSERT INTO {schema}.runs (run_id, project_id, kind, payload, priority, max_attempts, timeout, expires_at,
        idempotency_key, concurrency_key, is_shadow, headers)
    VALUES (old.run_id, old.project_id, old.kind, coalesce(retry.payload, old.payload), old.priority, old.max_attempts,
        old.timeout, CASE WHEN old.expires_at > now() THEN old.expires_at END, old.idempotency_key, old.concurrency_key,
        old.is_shadow AND old.shadow_by IS DISTINCT FROM 'worker', old.headers);
    UPDATE {schema}.runs AS r
       SET created_at = old.created_at, lease_token = old.lease_token, errors = old.errors, replay_of = old.replay_of,
           parent_id = {schema}.come_back(old.run_id)
     WHERE r.run_id = old.run_id;
    IF from_step IS NOT NULL THEN
        SELECT coalesce(max(s.position), 0) INTO steps FROM {schema}.steps AS s
         WHERE s.run_id = old.run_id AND s.run_created_at = old.created_at AND s.error IS NULL;
        IF from_step < 1 OR from_step > steps + 1 THEN
            RAISE EXCEPTION 'from_step must be between 1 and %, not %', steps + 1, from_step
                USING ERRCODE = 'invalid_parameter_value', COLUMN = 'from_step',
                      HINT = format('%s of its steps are recorded; one more than that keeps them all.', steps);
        END IF;
    END IF;
    DELETE FROM {schema}.steps AS s
     WHERE s.run_id = old.run_id AND s.run_created_at = old.created_at AND s.position >= coalesce(from_step, 1);
    IF from_step IS NULL THEN
        PERFORM {schema}.start_over(ARRAY[old.run_id]);
    END IF;
    RETURN old.run_id;
EXCEPTION
    WHEN unique_violation THEN
        RAISE EXCEPTION 'run % can''t be retried while another run holds its id or its idempotency key', retry.run_id
            USING ERRCODE = 'object_not_in_prerequisite_state';
END $$;

-- A settled run once more, as a run of its own: a new id, and none of the idempotency key, which is the first one's. What
-- is replayed stays as it is.
CREATE FUNCTION {schema}.replay(run_id uuid, payload jsonb DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    again uuid := {schema}.uuid7();
BEGIN
    IF EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = replay.run_id AND {schema}.caller_sees(r.project_id)) THEN
        RAISE EXCEPTION 'run % is live', replay.run_id USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Only a settled run can be replayed.';
    END IF;
    INSERT INTO {schema}.runs (run_id, project_id, kind, payload, priority, max_attempts, timeout, expires_at,
        concurrency_key, is_shadow, headers)
    SELECT again, h.project_id, h.kind, coalesce(replay.payload, h.payload), h.priority, h.max_attempts, h.timeout,
           CASE WHEN h.expires_at > now() THEN h.expires_at END, h.concurrency_key,
           h.is_shadow AND h.shadow_by IS DISTINCT FROM 'worker', h.headers
      FROM {schema}.run_history AS h
     WHERE h.run_id = replay.run_id AND {schema}.caller_sees(h.project_id)
     ORDER BY h.finished_at DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no run has the id %', replay.run_id USING ERRCODE = 'no_data_found';
    END IF;
    UPDATE {schema}.runs AS r SET replay_of = replay.run_id WHERE r.run_id = again;
    RETURN again;
END $$;

-- Deletes a settled run for good, with all that is kept of it.
CREATE FUNCTION {schema}.forget(run_id uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was_there boolean;
BEGIN
    WITH gone AS (
        DELETE FROM {schema}.run_history AS h WHERE h.run_id = forget.run_id AND {schema}.caller_sees(h.project_id)
        RETURNING h.*
    ), freed AS (
        DELETE FROM {schema}.idempotency_keys AS k USING gone
         WHERE k.project_id = gone.project_id AND k.kind = gone.kind AND k.idempotency_key = gone.idempotency_key
           AND k.run_id = gone.run_id AND k.expires_at IS NOT NULL
    ), of_steps AS (
        DELETE FROM {schema}.steps AS s USING gone WHERE s.run_id = gone.run_id AND s.run_created_at = gone.created_at
    ), of_log AS (
        DELETE FROM {schema}.run_logs AS l USING gone WHERE l.run_id = gone.run_id AND l.run_created_at = gone.created_at
    ), of_groups AS (
        DELETE FROM {schema}.child_groups AS g USING gone
         WHERE g.parent_id = gone.run_id AND g.parent_created_at = gone.created_at
    ), of_children AS (
        DELETE FROM {schema}.children AS c USING gone
         WHERE c.parent_id = gone.run_id AND c.parent_created_at = gone.created_at
    ), of_parent AS (
        UPDATE {schema}.children AS c SET state = 'deleted', settled_at = now(), error = NULL, result = NULL
          FROM gone WHERE c.child_id = gone.run_id
    )
    SELECT EXISTS (SELECT FROM gone) INTO was_there;
    IF was_there THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = forget.run_id AND {schema}.caller_sees(r.project_id)) THEN
        RAISE EXCEPTION 'run % is live', forget.run_id USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Cancel it first.';
    END IF;
    RAISE EXCEPTION 'no run has the id %', forget.run_id USING ERRCODE = 'no_data_found';
END $$;
