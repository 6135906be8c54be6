-- What happened outside, for runs that wait for it (run.event). An event has an address: a project, a name and a key, which
-- is the id of a run if it is meant for that one alone. The first of an address counts, also when it came before anybody
-- waits; it is kept for so long, and read by all who wait for it. What a run has received is recorded as a step of it (0017).

CREATE TABLE {schema}.events (
    emitted_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    project_id text COLLATE "C" NOT NULL,
    name       text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,  -- empty: the name alone
    payload    jsonb NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (project_id, name, key),
    CONSTRAINT project_id_has_1_to_200_characters CHECK (char_length(project_id) BETWEEN 1 AND 200),
    CONSTRAINT name_has_1_to_100_characters CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT key_has_at_most_90_characters CHECK (char_length(key) <= 90)
);
CREATE INDEX events_expires_at ON {schema}.events (expires_at);

-- Which run waits for what, and until when. One row a run, since its handler waits in one place.
CREATE TABLE {schema}.event_waits (
    run_id         uuid        NOT NULL,
    run_created_at timestamptz NOT NULL,
    began_at       timestamptz NOT NULL DEFAULT now(),
    ends_at        timestamptz,            -- null: it waits for ever
    lease_token    bigint      NOT NULL,   -- that which it gave up last
    position       smallint    NOT NULL,   -- of the step
    project_id     text COLLATE "C" NOT NULL,
    name           text COLLATE "C" NOT NULL,
    key            text COLLATE "C" NOT NULL,
    CONSTRAINT event_waits_pkey PRIMARY KEY (run_id)
);
CREATE INDEX event_waits_address ON {schema}.event_waits (project_id, name, key);

-- Who waits and who emits come one after the other: else the one would not see the event, and the other nobody who waits.
-- Held until the end of the transaction.
CREATE FUNCTION {schema}.lock_address(project_id text, name text, key text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock({lock_class} + 2, (hashtextextended(
        '{name} event ' || jsonb_build_array(lock_address.project_id, lock_address.name, lock_address.key)::text, 0) >> 32)::integer);
END $$;

-- It has happened. For one run (run_id), or for all that wait for this name and key in the project. True if this is the first
-- of its address, false if there is one already, which stays. It is kept for so long.
CREATE FUNCTION {schema}.emit(
    name text, payload jsonb DEFAULT 'null', run_id uuid DEFAULT NULL, key text DEFAULT NULL, project_id text DEFAULT NULL,
    keep interval DEFAULT '7 days'
) RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    max_bytes bigint := (SELECT (s.value #>> '{}')::numeric::bigint FROM {schema}.settings AS s
                          WHERE s.name = 'max_payload_bytes');
    waits     {schema}.event_waits;
BEGIN
    IF emit.run_id IS NOT NULL THEN
        IF coalesce(emit.key, emit.project_id) IS NOT NULL THEN
            RAISE EXCEPTION 'an event is for a run, or for a key of a project' USING ERRCODE = 'invalid_parameter_value',
                COLUMN = 'key', HINT = 'Leave out run_id, or key and project_id.';
        END IF;
        emit.project_id := (SELECT r.project_id FROM {schema}.runs AS r WHERE r.run_id = emit.run_id AND {schema}.caller_sees(r.project_id));
        IF emit.project_id IS NULL THEN
            IF EXISTS (SELECT FROM {schema}.run_history AS h WHERE h.run_id = emit.run_id AND {schema}.caller_sees(h.project_id)) THEN
                RAISE EXCEPTION 'run % is settled already', emit.run_id USING ERRCODE = 'object_not_in_prerequisite_state';
            END IF;
            RAISE EXCEPTION 'no run has the id %', emit.run_id USING ERRCODE = 'no_data_found';
        END IF;
    END IF;
    emit.key := coalesce(emit.run_id::text, emit.key, '');
    emit.project_id := coalesce(emit.project_id, 'default');
    IF NOT {schema}.caller_sees(emit.project_id) THEN
        RAISE EXCEPTION 'this role may not emit for the project "%"', emit.project_id
            USING ERRCODE = 'insufficient_privilege', HINT = 'The owner of the schema binds roles by bind_role().';
    END IF;
    IF NOT emit.keep BETWEEN interval '1 second' AND interval '365 days' THEN
        RAISE EXCEPTION 'keep must be between a second and 365 days, not %', emit.keep
            USING ERRCODE = 'invalid_parameter_value', COLUMN = 'keep', HINT = 'It says how long the event waits for whoever waits for it.';
    END IF;
    IF octet_length(emit.payload::text) > max_bytes THEN
        RAISE EXCEPTION 'payload has % bytes as text, more than max_payload_bytes', octet_length(emit.payload::text)
            USING ERRCODE = 'program_limit_exceeded', COLUMN = 'payload', HINT = 'Put a reference into the event.';
    END IF;
    PERFORM {schema}.lock_address(emit.project_id, emit.name, emit.key);
    INSERT INTO {schema}.events AS e (expires_at, project_id, name, key, payload)
    VALUES (clock_timestamp() + emit.keep, emit.project_id, emit.name, emit.key, coalesce(emit.payload, 'null'))
    ON CONFLICT ON CONSTRAINT events_pkey DO UPDATE
       SET emitted_at = excluded.emitted_at, expires_at = excluded.expires_at, payload = excluded.payload
     WHERE e.expires_at <= clock_timestamp();
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    FOR waits IN SELECT * FROM {schema}.event_waits AS w
                  WHERE w.project_id = emit.project_id AND w.name = emit.name AND w.key = emit.key LOOP
        PERFORM {schema}.end_event_wait(waits);
    END LOOP;
    -- A transaction with a snapshot of its own does not see who began to wait since.
    IF current_setting('transaction_isolation') <> 'read committed' AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', 'check:');
    END IF;
    RETURN true;
END $$;

-- Let a run go on whose event is there. One that somebody has locked is executed now, or cancelled; or the leader finds it.
CREATE FUNCTION {schema}.end_event_wait(waits {schema}.event_waits) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    UPDATE {schema}.runs AS r SET waits_for = NULL, run_at = least(r.run_at, clock_timestamp())
     WHERE r.run_id = (SELECT s.run_id FROM {schema}.runs AS s
                        WHERE s.run_id = waits.run_id AND s.created_at = waits.run_created_at AND s.state = 'pending'
                          AND s.lease_token = waits.lease_token AND (s.waits_for = 'event' OR s.run_at > clock_timestamp())
                          FOR UPDATE SKIP LOCKED);
    IF FOUND THEN
        PERFORM {schema}.announce(clock_timestamp());
    ELSIF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', 'check:');
    END IF;
END $$;

-- A run's handler asks for an event. `became`: event or timeout, which is recorded as its step from now on; waits, when it was
-- put back to pending until then, without slot and lease, and its attempt is not used up; locked, by somebody for a moment.
-- No row: it is another's by now. Asked again after a lost answer it says the same.
CREATE FUNCTION {schema}.take_event(
    run_id uuid, lease_token bigint, lease_owner text, place integer, step text, name text, key text, timeout_s float8,
    progress jsonb
) RETURNS TABLE (became text, result json)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    was   {schema}.runs;
    waits {schema}.event_waits;
    event {schema}.events;
    until timestamptz;
BEGIN
    SELECT * INTO was FROM {schema}.runs AS r
     WHERE r.run_id = take_event.run_id AND r.lease_token = take_event.lease_token AND r.lease_owner = take_event.lease_owner
       AND r.state = 'running';
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'waits', NULL::json
           FROM {schema}.event_waits AS w WHERE w.run_id = take_event.run_id AND w.lease_token = take_event.lease_token;
        RETURN;
    END IF;
    PERFORM {schema}.lock_address(was.project_id, take_event.name, take_event.key);
    PERFORM FROM {schema}.runs AS r
      WHERE r.run_id = take_event.run_id AND r.lease_token = take_event.lease_token AND r.lease_owner = take_event.lease_owner
        AND r.state = 'running' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'locked', NULL::json;
        RETURN;
    END IF;
    RETURN QUERY SELECT CASE WHEN s.result::jsonb ? 'timeout' THEN 'timeout' ELSE 'event' END, s.result FROM {schema}.steps AS s
      WHERE s.run_id = take_event.run_id AND s.run_created_at = was.created_at AND s.position = take_event.place
        AND s.lease_token = take_event.lease_token AND s.error IS NULL;
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO waits FROM {schema}.event_waits AS w
     WHERE w.run_id = take_event.run_id AND w.run_created_at = was.created_at AND w.position = take_event.place
       AND w.name = take_event.name AND w.key = take_event.key;
    until := CASE WHEN FOUND THEN waits.ends_at ELSE clock_timestamp() + take_event.timeout_s * interval '1 s' END;
    SELECT * INTO event FROM {schema}.events AS e
     WHERE e.project_id = was.project_id AND e.name = take_event.name AND e.key = take_event.key
       -- One that came while this run was waiting counts, however late it is read.
       AND (e.expires_at > clock_timestamp() OR e.emitted_at >= waits.began_at);
    IF FOUND OR until <= clock_timestamp() THEN
        became := CASE WHEN event.name IS NOT NULL THEN 'event' ELSE 'timeout' END;
        result := CASE WHEN event.name IS NOT NULL
                       THEN json_build_object('emitted_at', event.emitted_at, 'payload', event.payload)
                       ELSE json_build_object('timeout', until) END;
        INSERT INTO {schema}.steps AS s (run_id, run_created_at, started_at, finished_at, lease_token, position, attempt,
            is_shadow, project_id, name, error, result)
        VALUES (was.run_id, was.created_at, coalesce(waits.began_at, clock_timestamp()), clock_timestamp(), was.lease_token,
            take_event.place, was.attempt, was.is_shadow, was.project_id, take_event.step, NULL, result)
        ON CONFLICT ON CONSTRAINT steps_pkey DO UPDATE
           SET (started_at, finished_at, lease_token, attempt, is_shadow, name, error, result) = (excluded.started_at,
               excluded.finished_at, excluded.lease_token, excluded.attempt, excluded.is_shadow, excluded.name, NULL,
               excluded.result);
        DELETE FROM {schema}.event_waits AS w WHERE w.run_id = was.run_id;
        RETURN NEXT;
        RETURN;
    END IF;
    INSERT INTO {schema}.event_waits AS w (run_id, run_created_at, ends_at, lease_token, position, project_id, name, key)
    VALUES (was.run_id, was.created_at, until, was.lease_token, take_event.place, was.project_id, take_event.name,
        take_event.key)
    ON CONFLICT ON CONSTRAINT event_waits_pkey DO UPDATE
       SET run_created_at = excluded.run_created_at, lease_token = excluded.lease_token, ends_at = excluded.ends_at,
           began_at = coalesce(waits.began_at, excluded.began_at), position = excluded.position, name = excluded.name,
           key = excluded.key, project_id = excluded.project_id;
    -- With an end it is a run that is due then, whoever is there; without one it is due at no time.
    UPDATE {schema}.runs AS r
       SET state = 'pending', lease_owner = NULL, lease_expires_at = NULL, started_at = NULL, is_limited = false,
           attempt = r.attempt - 1, progress = coalesce(take_event.progress, r.progress),
           waits_for = CASE WHEN until IS NULL THEN 'event' END, run_at = coalesce(until, r.run_at),
           is_shadow = r.is_shadow AND r.shadow_by IS DISTINCT FROM 'worker', shadow_by = nullif(r.shadow_by, 'worker')
     WHERE r.run_id = was.run_id;
    IF was.is_limited THEN
        DELETE FROM {schema}.places AS p WHERE p.run_id = was.run_id AND NOT p.lingers;
    END IF;
    IF until IS NOT NULL AND until < clock_timestamp() + interval '1 hour' THEN  -- who sleeps longer must know of it
        PERFORM {schema}.announce(until);
    END IF;
    RETURN QUERY SELECT 'waits', NULL::json;
END $$;

-- The net, cast by the leader: runs that wait for what is there, waits of runs that are gone, events whose time is over.
-- Tells how many runs it let go.
CREATE FUNCTION {schema}.mend_events(max_rows integer DEFAULT 1000) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    waits  {schema}.event_waits;
    mended integer := 0;
BEGIN
    FOR waits IN
        SELECT w.* FROM {schema}.event_waits AS w
          JOIN {schema}.events AS e ON e.project_id = w.project_id AND e.name = w.name AND e.key = w.key
          JOIN {schema}.runs AS r ON r.run_id = w.run_id AND r.created_at = w.run_created_at
         WHERE r.state = 'pending' AND r.lease_token = w.lease_token AND (r.waits_for = 'event' OR r.run_at > clock_timestamp())
         LIMIT mend_events.max_rows
    LOOP
        PERFORM {schema}.end_event_wait(waits);
        mended := mended + 1;
    END LOOP;
    DELETE FROM {schema}.event_waits AS w
     WHERE w.ctid = ANY (array(
        SELECT d.ctid FROM {schema}.event_waits AS d
         WHERE NOT EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = d.run_id AND r.created_at = d.run_created_at)
         LIMIT mend_events.max_rows FOR UPDATE SKIP LOCKED));
    DELETE FROM {schema}.events AS e
     WHERE e.ctid = ANY (array(
        SELECT d.ctid FROM {schema}.events AS d
         WHERE d.expires_at <= now() AND NOT EXISTS (
                   SELECT FROM {schema}.event_waits AS w
                    WHERE w.project_id = d.project_id AND w.name = d.name AND w.key = d.key AND d.emitted_at >= w.began_at)
         ORDER BY d.expires_at LIMIT mend_events.max_rows FOR UPDATE SKIP LOCKED));
    RETURN mended;
END $$;
