-- Idempotency keys outlive their runs: one row a key, from the insert of its run until idempotency_window_s after the
-- settle. The unique index on runs answers ON CONFLICT; this table is what a key is really held by, and only runs that
-- have a key pay for it. A run that is inserted as a shadow run holds none.

CREATE TABLE {schema}.idempotency_keys (
    project_id      text COLLATE "C" NOT NULL,
    kind            text COLLATE "C" NOT NULL,
    idempotency_key text COLLATE "C" NOT NULL,
    run_id          uuid NOT NULL,
    expires_at      timestamptz,  -- null: its run is live
    held_until      timestamptz,  -- null: until idempotency_window_s after the settle
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (project_id, kind, idempotency_key)
);
CREATE INDEX idempotency_keys_expires_at ON {schema}.idempotency_keys (expires_at) WHERE expires_at IS NOT NULL;

-- A key without an end whose run is gone (deleted by hand) holds nothing.
CREATE FUNCTION {schema}.is_held(key {schema}.idempotency_keys) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN key.expires_at IS NULL THEN EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = key.run_id)
                ELSE key.expires_at > clock_timestamp() END;
END $$;

-- The run that holds a key; null if it is free. Takes no lock: a producer that only asks must not hold up a settle.
CREATE FUNCTION {schema}.key_holder(project_id text, kind text, idempotency_key text) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT k.run_id FROM {schema}.idempotency_keys AS k
             WHERE k.project_id = key_holder.project_id AND k.kind = key_holder.kind
               AND k.idempotency_key = key_holder.idempotency_key AND {schema}.is_held(k)
               AND {schema}.caller_sees(key_holder.project_id));
END $$;

-- True if the key is this run's from now on. DELETE and DO NOTHING, not DO UPDATE, which would lock the row of a live
-- run, and its settle would wait for this transaction's end.
CREATE FUNCTION {schema}.hold_key(
    project_id text, kind text, idempotency_key text, run_id uuid, held_until timestamptz DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM {schema}.idempotency_keys AS k
     WHERE k.project_id = hold_key.project_id AND k.kind = hold_key.kind
       AND k.idempotency_key = hold_key.idempotency_key AND NOT {schema}.is_held(k);
    INSERT INTO {schema}.idempotency_keys (project_id, kind, idempotency_key, run_id, held_until)
    VALUES (hold_key.project_id, hold_key.kind, hold_key.idempotency_key, hold_key.run_id, hold_key.held_until)
    ON CONFLICT DO NOTHING;
    RETURN FOUND;
END $$;

-- After the insert and not before it: a producer that waited in the unique index for the settle of the key's run must
-- find what that settle has left here.
CREATE FUNCTION {schema}.take_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    holder {schema}.idempotency_keys;
BEGIN
    -- enqueue took it for this run already, or the run is retried.
    UPDATE {schema}.idempotency_keys AS k SET expires_at = NULL
     WHERE k.project_id = NEW.project_id AND k.kind = NEW.kind AND k.idempotency_key = NEW.idempotency_key
       AND k.run_id = NEW.run_id;
    IF FOUND OR {schema}.hold_key(NEW.project_id, NEW.kind, NEW.idempotency_key, NEW.run_id) THEN
        RETURN NULL;
    END IF;
    SELECT * INTO holder FROM {schema}.idempotency_keys AS k
     WHERE k.project_id = NEW.project_id AND k.kind = NEW.kind AND k.idempotency_key = NEW.idempotency_key;
    RAISE EXCEPTION 'idempotency_key was used by a run that is settled'
        USING ERRCODE = 'unique_violation', COLUMN = 'idempotency_key', CONSTRAINT = 'runs_idempotency_key',
              SCHEMA = '{name}', TABLE = 'runs',
              DETAIL = format('Run %s holds it until %s.', holder.run_id, holder.expires_at),
              HINT = 'Use another key, or {name}.enqueue, which returns that run''s id.';
END $$;
CREATE TRIGGER take_key AFTER INSERT ON {schema}.runs FOR EACH ROW
    WHEN (NEW.idempotency_key IS NOT NULL AND NOT NEW.is_shadow) EXECUTE FUNCTION {schema}.take_key();

CREATE FUNCTION {schema}.keep_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE {schema}.idempotency_keys AS k
       SET expires_at = CASE WHEN k.held_until IS NOT NULL THEN greatest(k.held_until, NEW.finished_at)
           ELSE NEW.finished_at + interval '1 s'
           * (SELECT (s.value #>> '{}')::float8 FROM {schema}.settings AS s WHERE s.name = 'idempotency_window_s') END
     WHERE k.project_id = NEW.project_id AND k.kind = NEW.kind AND k.idempotency_key = NEW.idempotency_key
       AND k.run_id = NEW.run_id;
    RETURN NULL;
END $$;
CREATE TRIGGER keep_key AFTER INSERT ON {schema}.run_history FOR EACH ROW WHEN (NEW.idempotency_key IS NOT NULL)
    EXECUTE FUNCTION {schema}.keep_key();
