-- What is paused is not claimed: a kind, a project, a kind of a project, or everything. Runs that are executed go on.

CREATE TABLE {schema}.pauses (
    kind       text COLLATE "C" NOT NULL DEFAULT '',  -- empty: every kind
    project_id text COLLATE "C" NOT NULL DEFAULT '',  -- empty: every project
    until      timestamptz,                           -- null: until it is resumed
    paused_at  timestamptz NOT NULL DEFAULT now(),
    reason     text,
    CONSTRAINT pauses_pkey PRIMARY KEY (kind, project_id),
    CONSTRAINT kind_has_at_most_200_characters CHECK (char_length(kind) <= 200),
    CONSTRAINT project_id_has_at_most_200_characters CHECK (char_length(project_id) <= 200),
    CONSTRAINT reason_has_at_most_1000_characters CHECK (char_length(reason) <= 1000)
);

-- Pause; null means every. The same again changes `until` and `reason`.
CREATE FUNCTION {schema}.pause(
    kind text DEFAULT NULL, project_id text DEFAULT NULL, until timestamptz DEFAULT NULL, reason text DEFAULT NULL
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF NOT {schema}.caller_sees(coalesce(pause.project_id, '')) THEN
        RAISE EXCEPTION 'this role may not pause %', coalesce('the project "' || pause.project_id || '"', 'every project')
            USING ERRCODE = 'insufficient_privilege', HINT = 'The owner of the schema binds roles by bind_role().';
    END IF;
    IF pause.until <= now() THEN
        RAISE EXCEPTION 'until must be in the future' USING ERRCODE = 'invalid_parameter_value', COLUMN = 'until',
            HINT = 'Leave it out to pause until resume() is called.';
    END IF;
    INSERT INTO {schema}.pauses AS p (kind, project_id, until, reason)
    VALUES (coalesce(pause.kind, ''), coalesce(pause.project_id, ''), pause.until, pause.reason)
    ON CONFLICT ON CONSTRAINT pauses_pkey DO UPDATE SET until = excluded.until, reason = excluded.reason;
    PERFORM {schema}.announce(now());  -- who sleeps must know until when
END $$;

-- End exactly this pause; false if there was none.
CREATE FUNCTION {schema}.resume(kind text DEFAULT NULL, project_id text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF NOT {schema}.caller_sees(coalesce(resume.project_id, '')) THEN
        RAISE EXCEPTION 'this role may not resume %', coalesce('the project "' || resume.project_id || '"', 'every project')
            USING ERRCODE = 'insufficient_privilege', HINT = 'The owner of the schema binds roles by bind_role().';
    END IF;
    DELETE FROM {schema}.pauses AS p
     WHERE p.kind = coalesce(resume.kind, '') AND p.project_id = coalesce(resume.project_id, '');
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- Inserts of meanwhile have woken nobody who could have claimed them.
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', '');
    END IF;
    RETURN true;
END $$;
