-- Roles by what they may do. Roles belong to the whole cluster: they may be there already, or come up in another
-- database at this very moment, and who migrates may not be allowed to make them. None of that stops a migration.

DO $do$
DECLARE
    role_name text;
    missing   text := '';
BEGIN
    FOREACH role_name IN ARRAY ARRAY['{name}_producer', '{name}_worker', '{name}_operator', '{name}_observer'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;  -- came up meanwhile: what was wanted is there
            WHEN insufficient_privilege THEN missing := missing || format(' CREATE ROLE %I NOLOGIN;', role_name);
        END;
    END LOOP;
    IF missing <> '' THEN
        RAISE WARNING 'roles are missing: without CREATEROLE the migration could not make them'
            USING HINT = 'An administrator runs:' || missing || ' SELECT {schema}.grant_roles();';
    END IF;
END $do$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC;

-- Run by each migration's end, and by an administrator who has made missing roles by hand.
CREATE FUNCTION {schema}.grant_roles() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT * FROM (VALUES
            ('producer', 'USAGE ON SCHEMA {schema}'),
            ('producer', 'INSERT ON {schema}.runs'),
            ('producer', 'SELECT (run_id) ON {schema}.runs'),
            ('producer', 'EXECUTE ON FUNCTION {schema}.enqueue, {schema}.uuid7'),
            ('worker', 'USAGE ON SCHEMA {schema}'),
            ('worker', 'SELECT, INSERT, UPDATE, DELETE ON {schema}.runs, {schema}.workers, {schema}.reaps'),
            ('worker', 'SELECT, UPDATE ON {schema}.reaper'),
            ('worker', 'SELECT, INSERT ON {schema}.run_history'),
            ('worker', 'SELECT ON {schema}.all_runs, {schema}.settings, {schema}.migrations'),
            ('worker', 'EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema}'),
            ('operator', 'USAGE ON SCHEMA {schema}'),
            ('operator', 'SELECT ON ALL TABLES IN SCHEMA {schema}'),
            ('operator', 'EXECUTE ON FUNCTION {schema}.cancel, {schema}.retry, {schema}.forget'),
            ('observer', 'USAGE ON SCHEMA {schema}'),
            ('observer', 'SELECT ON ALL TABLES IN SCHEMA {schema}')
        ) AS g (role_name, what)
        UNION ALL
        SELECT 'worker', 'MAINTAIN ON {schema}.runs' WHERE current_setting('server_version_num')::int >= 170000
    LOOP
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}_' || granted.role_name) THEN
            EXECUTE format('GRANT %s TO %I', granted.what, '{name}_' || granted.role_name);
        END IF;
    END LOOP;
    -- Who makes roles, makes partitions or changes limits is the owner alone.
    REVOKE ALL ON FUNCTION {schema}.grant_roles, {schema}.apply_settings FROM PUBLIC;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}_worker') THEN
        EXECUTE format('REVOKE ALL ON FUNCTION {schema}.grant_roles, {schema}.apply_settings FROM %I', '{name}_worker');
    END IF;
END $$;
REVOKE ALL ON FUNCTION {schema}.grant_roles FROM PUBLIC;

SELECT {schema}.grant_roles();
