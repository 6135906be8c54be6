-- Debounce: of calls that come one after the other, one run is executed, with what the last of them said. One row a key:
-- the run that waits for it, or has waited. A table of its own, since no settle writes here: a producer's open
-- transaction holds its row.

CREATE TABLE {schema}.debounces (
    project_id      text COLLATE "C" NOT NULL,
    kind            text COLLATE "C" NOT NULL,
    idempotency_key text COLLATE "C" NOT NULL,
    run_id          uuid NOT NULL,
    due_at          timestamptz NOT NULL,
    CONSTRAINT debounces_pkey PRIMARY KEY (project_id, kind, idempotency_key)
);
CREATE INDEX debounces_due_at ON {schema}.debounces (due_at);

-- What enqueue asks of debounce and throttle.
CREATE FUNCTION {schema}.check_pace(
    idempotency_key text, run_at timestamptz, debounce interval, debounce_at_most interval, throttle interval,
    is_shadow boolean
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fault text[] := CASE
        WHEN is_shadow THEN ARRAY['is_shadow', 'goes with neither debounce nor throttle: the key of a shadow run holds nothing']
        WHEN idempotency_key IS NULL THEN ARRAY['idempotency_key', 'is what debounce and throttle go by: give one']
        WHEN debounce_at_most IS NOT NULL AND debounce IS NULL THEN ARRAY['debounce_at_most', 'is a bound of debounce: give both']
        WHEN debounce IS NOT NULL AND throttle IS NOT NULL THEN ARRAY['throttle', 'is given beside debounce: give one of them']
        WHEN debounce IS NOT NULL AND run_at <> now() THEN ARRAY['run_at', 'is given beside debounce, which sets it: give one of them']
        WHEN NOT debounce BETWEEN '1 us' AND '365 days' THEN ARRAY['debounce', 'must be above 0 and at most 365 days']
        WHEN NOT debounce_at_most BETWEEN '1 us' AND '365 days' THEN ARRAY['debounce_at_most', 'must be above 0 and at most 365 days']
        WHEN NOT throttle BETWEEN '1 us' AND '365 days' THEN ARRAY['throttle', 'must be above 0 and at most 365 days']
    END;
BEGIN
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION '% %', fault[1], fault[2] USING ERRCODE = 'invalid_parameter_value', COLUMN = fault[1];
    END IF;
END $$;

-- The run of this key that is pending takes what is new, and is due in `pause` from now on, at the latest `at_most` after
-- it was first enqueued; it begins again with its first attempt. Where none is pending, this one is to be inserted: one that
-- is running is not touched, and this one follows it, without the key in its row, where the running one has it. Returns the
-- run to be inserted, or one with the id of that which was pending.
CREATE FUNCTION {schema}.debounce(run {schema}.runs, pause interval, at_most interval) RETURNS {schema}.runs
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    key       text := run.idempotency_key;
    called_at timestamptz := clock_timestamp();
    waiting   uuid;
    target    uuid;
    old_key   text;
    due       timestamptz;
BEGIN
    -- One caller after the other: whoever comes second finds what the first has left.
    INSERT INTO {schema}.debounces AS d (project_id, kind, idempotency_key, run_id, due_at)
    VALUES (run.project_id, run.kind, run.idempotency_key, run.run_id, called_at + debounce.pause)
    ON CONFLICT ON CONSTRAINT debounces_pkey DO UPDATE SET due_at = excluded.due_at
    RETURNING d.run_id INTO waiting;
    IF octet_length(run.payload::text)
       > (SELECT (s.value #>> '{}')::numeric FROM {schema}.settings AS s WHERE s.name = 'max_payload_bytes') THEN
        RAISE EXCEPTION 'payload has % bytes as text, more than max_payload_bytes', octet_length(run.payload::text)
            USING ERRCODE = 'program_limit_exceeded', COLUMN = 'payload', HINT = 'Put a reference into the payload.';
    END IF;
    LOOP
        SELECT r.run_id, r.concurrency_key INTO target, old_key FROM {schema}.runs AS r
         WHERE r.run_id = coalesce(
             (SELECT w.run_id FROM {schema}.runs AS w WHERE w.run_id = waiting AND w.state = 'pending'),
             (SELECT w.run_id FROM {schema}.runs AS w
               WHERE w.project_id = run.project_id AND w.kind = run.kind AND w.idempotency_key = run.idempotency_key
                 AND (NOT w.is_shadow OR w.shadow_by = 'worker')));
        -- A claim that has it at this moment is waited for: then it is not pending any more.
        UPDATE {schema}.runs AS r
           SET payload = run.payload, headers = run.headers, priority = run.priority, timeout = run.timeout,
               run_at = least(called_at + debounce.pause,
                   CASE WHEN debounce.at_most IS NOT NULL THEN greatest(called_at, r.created_at + debounce.at_most) END),
               max_attempts = run.max_attempts, expires_at = run.expires_at, is_shadow = run.is_shadow, shadow_by = NULL,
               concurrency_key = run.concurrency_key, waits_for = NULL, attempt = 0, progress = NULL
         WHERE r.run_id = target AND r.state = 'pending'
        RETURNING r.run_at INTO due;
        IF FOUND THEN
            -- Later than before or not: a worker that found the row locked must learn when it is due.
            IF current_setting('notifyworker.quiet', true) IS DISTINCT FROM 'on' THEN
                PERFORM {schema}.announce(due);
            END IF;
            IF old_key IS NOT NULL THEN  -- it may have been its turn
                PERFORM {schema}.end_wait(run.project_id, old_key, 1);
            END IF;
            run.run_id := target;
            EXIT;
        END IF;
        -- The key of a settled run is free, whatever its window.
        DELETE FROM {schema}.idempotency_keys AS k
         WHERE k.project_id = run.project_id AND k.kind = run.kind AND k.idempotency_key = run.idempotency_key
           AND k.expires_at IS NOT NULL;
        run.run_at := called_at + least(debounce.pause, debounce.at_most);
        EXIT WHEN {schema}.hold_key(run.project_id, run.kind, run.idempotency_key, run.run_id, now());
        IF EXISTS (SELECT FROM {schema}.runs AS r
                    WHERE r.project_id = run.project_id AND r.kind = run.kind AND r.idempotency_key = run.idempotency_key
                      AND (NOT r.is_shadow OR r.shadow_by = 'worker') AND r.state = 'running') THEN
            run.idempotency_key := NULL;
            EXIT;
        END IF;
    END LOOP;
    UPDATE {schema}.debounces AS d SET run_id = run.run_id
     WHERE d.project_id = run.project_id AND d.kind = run.kind AND d.idempotency_key = key;
    RETURN run;
END $$;
