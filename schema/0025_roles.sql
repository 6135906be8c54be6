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

-- Run by each migration's end, and by an administrator who has made missing roles by hand. The partitions of the history
-- are granted to nobody: they are read through run_history, whose grants and policies count.
CREATE FUNCTION {schema}.grant_roles() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    granted record;
BEGIN
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC;
    FOR granted IN
        SELECT * FROM (VALUES
            ('producer', 'USAGE ON SCHEMA {schema}'),
            ('producer', 'INSERT ON {schema}.runs'),
            ('producer', 'SELECT (run_id) ON {schema}.runs'),
            ('producer', 'EXECUTE ON FUNCTION {schema}.enqueue, {schema}.key_holder, {schema}.uuid7'),
            ('worker', 'USAGE ON SCHEMA {schema}'),
            ('worker', 'SELECT, INSERT, UPDATE, DELETE ON {schema}.runs, {schema}.workers, {schema}.reaps'),
            ('worker', 'SELECT, UPDATE ON {schema}.reaper'),
            ('worker', 'SELECT, INSERT ON {schema}.run_history'),
            ('worker', 'SELECT ON {schema}.all_runs, {schema}.settings, {schema}.migrations'),
            ('worker', 'SELECT, UPDATE, DELETE ON {schema}.idempotency_keys, {schema}.debounces'),
            ('worker', 'SELECT, UPDATE, DELETE ON {schema}.waiters'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.tell_waiters, {schema}.expect, {schema}.expect_no_more'),
            ('operator', 'EXECUTE ON FUNCTION {schema}.expect, {schema}.expect_no_more'),
            ('observer', 'EXECUTE ON FUNCTION {schema}.expect, {schema}.expect_no_more'),
            ('worker', 'SELECT, DELETE ON {schema}.pauses'),
            ('worker', 'SELECT, INSERT, UPDATE, DELETE ON {schema}.schedules'),
            ('worker', 'SELECT, INSERT, UPDATE, DELETE ON {schema}.audit'),
            ('operator', 'INSERT, UPDATE, DELETE ON {schema}.schedules'),
            ('worker', 'SELECT, INSERT, UPDATE, DELETE ON {schema}.steps, {schema}.run_logs'),
            ('worker', 'SELECT, INSERT, UPDATE, DELETE ON {schema}.children, {schema}.child_groups, {schema}.child_checks'),
            ('worker', 'SELECT, INSERT, UPDATE, DELETE ON {schema}.events, {schema}.event_waits'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.park, {schema}.close_group, {schema}.failed_of, {schema}.who_comes_after'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.have_checked, {schema}.check_parent, {schema}.check_cancelled, {schema}.end_children, {schema}.cancel_children'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.take_event, {schema}.lock_address, {schema}.emit, {schema}.mend_events'),
            ('producer', 'EXECUTE ON FUNCTION {schema}.emit'),
            ('operator', 'EXECUTE ON FUNCTION {schema}.emit'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.pause, {schema}.resume, {schema}.set_limit, {schema}.remove_limit'),
            ('worker', 'SELECT, UPDATE ON {schema}.limits'),
            ('worker', 'SELECT, INSERT, UPDATE, DELETE ON {schema}.places, {schema}.rates'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.claim_limited, {schema}.take_keys, {schema}.take_room, {schema}.room'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.tokens, {schema}.spend, {schema}.key_places, {schema}.adopt'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.end_lingering, {schema}.end_wait, {schema}.mend_limits'),
            ('operator', 'EXECUTE ON FUNCTION {schema}.set_limit, {schema}.remove_limit, {schema}.set_share'),
            ('worker', 'SELECT ON {schema}.shares, {schema}.versions'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.live_version, {schema}.set_version, {schema}.adopt_versions'),
            ('operator', 'EXECUTE ON FUNCTION {schema}.set_version, {schema}.set_mirror, {schema}.remove_mirror'),
            ('operator', 'EXECUTE ON FUNCTION {schema}.set_comparison, {schema}.replay_in_shadow, {schema}.reset_shadow'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.set_mirror, {schema}.remove_mirror, {schema}.mirror, {schema}.part_of'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.set_comparison, {schema}.replay_in_shadow, {schema}.reset_shadow, {schema}.seal'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.claim_shadow, {schema}.take_pairs, {schema}.copy_runs, {schema}.mirror_room'),
            ('worker', 'SELECT, UPDATE ON {schema}.mirrors'),
            ('worker', 'SELECT, DELETE ON {schema}.mirror_skips'),
            ('worker', 'SELECT, UPDATE, DELETE ON {schema}.shadow_pairs'),
            ('worker', 'SELECT ON {schema}.comparisons'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.set_share'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.enqueue, {schema}.key_holder, {schema}.uuid7, {schema}.cancel, {schema}.retry'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.with_error, {schema}.announce, {schema}.complete'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.make_partitions, {schema}.drop_expired_partitions'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.ended_days, {schema}.delete_expired'),
            ('worker', 'SELECT ON {schema}.retention'),
            ('operator', 'USAGE ON SCHEMA {schema}'),
            ('operator', 'EXECUTE ON FUNCTION {schema}.cancel, {schema}.retry, {schema}.forget, {schema}.pause, {schema}.resume'),
            ('operator', 'EXECUTE ON FUNCTION {schema}.drain'),
            ('worker', 'EXECUTE ON FUNCTION {schema}.drain'),
            ('observer', 'USAGE ON SCHEMA {schema}')
        ) AS g (role_name, what)
        UNION ALL
        SELECT 'worker', 'MAINTAIN ON {schema}.runs' WHERE current_setting('server_version_num')::int >= 170000
        UNION ALL
        SELECT reader, format('SELECT ON %s', c.oid::regclass)
          FROM pg_class AS c CROSS JOIN (VALUES ('operator'), ('observer')) AS r (reader)
         WHERE c.relnamespace = quote_ident('{name}')::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
           AND c.relname NOT IN ('waiters', 'child_checks')  -- of every project
        UNION ALL
        -- Many runs at once: for those who may steer one, and for those who read.
        SELECT bound, 'EXECUTE ON FUNCTION {schema}.replay, {schema}.cancel_runs, {schema}.retry_runs, '
            '{schema}.set_retention' FROM (VALUES ('worker'), ('operator')) AS b (bound)
        UNION ALL
        SELECT bound, 'EXECUTE ON FUNCTION {schema}.failed_groups, {schema}.error_line, {schema}.live_matching, '
            '{schema}.settled_matching' FROM (VALUES ('worker'), ('operator'), ('observer')) AS b (bound)
        UNION ALL
        -- The policies ask both in the name of whoever reads.
        SELECT bound, what FROM (VALUES ('producer'), ('operator'), ('observer')) AS b (bound) CROSS JOIN (VALUES
            ('EXECUTE ON FUNCTION {schema}.projects_of'), ('SELECT ON {schema}.project_roles')) AS w (what)
    LOOP
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}_' || granted.role_name) THEN
            EXECUTE format('GRANT %s TO %I', granted.what, '{name}_' || granted.role_name);
        END IF;
    END LOOP;
END $$;

SELECT {schema}.grant_roles();
