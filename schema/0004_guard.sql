-- What a producer may not write is refused with the column's name and what to do. A trigger and not column grants:
-- grants by column do not reach the shards of a distributed table, and the owner of the schema passes by them.

CREATE FUNCTION {schema}.refuse() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    column_name text := CASE
        WHEN NEW.state <> 'pending' THEN 'state'
        WHEN NEW.attempt <> 0 THEN 'attempt'
        WHEN NEW.lease_token <> 0 THEN 'lease_token'
        WHEN NEW.lease_owner IS NOT NULL THEN 'lease_owner'
        WHEN NEW.lease_expires_at IS NOT NULL THEN 'lease_expires_at'
        WHEN NEW.started_at IS NOT NULL THEN 'started_at'
        WHEN NEW.created_at <> now() THEN 'created_at'
        WHEN NEW.progress IS NOT NULL THEN 'progress'
        WHEN NEW.errors <> '[]' THEN 'errors'
        WHEN NEW.shadow_by IS NOT NULL THEN 'shadow_by'
        WHEN NEW.replay_of IS NOT NULL THEN 'replay_of'
        WHEN NEW.waits_for IS NOT NULL THEN 'waits_for'
        WHEN NEW.is_limited THEN 'is_limited'
        WHEN NEW.parent_id IS NOT NULL AND NOT EXISTS (
            SELECT FROM {schema}.children AS c WHERE c.child_id = NEW.run_id AND c.parent_id = NEW.parent_id) THEN 'parent_id'
    END;
BEGIN
    IF column_name IS NULL AND NEW.parent_id IS NOT NULL THEN
        RETURN NEW;  -- its payload was measured when its parent started it
    END IF;
    IF column_name IS NOT NULL THEN
        RAISE EXCEPTION 'column "%" of {name}.runs is set by the system', column_name
            USING ERRCODE = 'invalid_parameter_value', COLUMN = column_name,
                  HINT = 'Leave it out of the INSERT.';
    END IF;
    RAISE EXCEPTION 'payload has % bytes as text, more than max_payload_bytes', octet_length(NEW.payload::text)
        USING ERRCODE = 'program_limit_exceeded', COLUMN = 'payload',
              HINT = 'Store the data elsewhere and put a reference into the payload, or raise the setting '
                     'with: notifyworker config set max_payload_bytes N';
END $$;

-- The limit stands as a literal in the trigger's WHEN, which is cheaper than any look-up; whoever changes the setting
-- makes the trigger anew by this function.
CREATE FUNCTION {schema}.apply_settings() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($trigger$
        CREATE OR REPLACE TRIGGER guard BEFORE INSERT ON {schema}.runs FOR EACH ROW WHEN (
            NEW.state <> 'pending' OR NEW.attempt <> 0 OR NEW.lease_token <> 0 OR NEW.lease_owner IS NOT NULL
            OR NEW.lease_expires_at IS NOT NULL OR NEW.started_at IS NOT NULL OR NEW.created_at <> now()
            OR NEW.progress IS NOT NULL OR NEW.errors <> '[]' OR NEW.shadow_by IS NOT NULL OR NEW.replay_of IS NOT NULL
            OR NEW.waits_for IS NOT NULL OR NEW.is_limited OR NEW.parent_id IS NOT NULL OR octet_length(NEW.payload::text) > %s)
        EXECUTE FUNCTION {schema}.refuse()$trigger$,
        (SELECT (value #>> '{}')::numeric::bigint FROM {schema}.settings WHERE name = 'max_payload_bytes'));
END $$;

SELECT {schema}.apply_settings();
