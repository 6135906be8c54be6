-- Row-level security by project, for installations whose projects must not see each other. Off until the owner calls
-- separate_projects(). From then on a role sees, inserts, cancels and retries runs of the projects that it is bound to,
-- and of no other; a role that is bound to none sees nothing. Workers, the owner and superusers see all.
--
-- The binding is a row that only the owner can write. A setting would be no binding: any session may change its own.

CREATE TABLE {schema}.project_roles (
    role_name  text COLLATE "C" NOT NULL,
    project_id text COLLATE "C" NOT NULL,  -- empty: every project
    CONSTRAINT project_roles_pkey PRIMARY KEY (role_name, project_id),
    CONSTRAINT role_name_has_1_to_63_bytes CHECK (octet_length(role_name) BETWEEN 1 AND 63),
    CONSTRAINT project_id_has_at_most_200_characters CHECK (char_length(project_id) <= 200)
);

-- Each role may read what it is bound to itself, also where the projects are not separated yet.
ALTER TABLE {schema}.project_roles ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_bindings ON {schema}.project_roles FOR SELECT USING (
    EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = role_name AND pg_has_role(r.oid, 'USAGE')));

-- What a role, or one that it inherits from, is bound to; '' among it: every project. A name without a role counts for
-- nothing. Runs with its caller's rights: whoever asks about another role than its own learns nothing.
CREATE FUNCTION {schema}.projects_of(who name) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ARRAY(SELECT b.project_id FROM {schema}.project_roles AS b JOIN pg_roles AS r ON r.rolname = b.role_name
                  WHERE pg_has_role(who, r.oid, 'USAGE'));
END $$;

-- The same question inside of a SECURITY DEFINER function, past which no policy looks, since current_user is the owner
-- there. So it goes by the role of the session: that of SET ROLE, else the login.
CREATE FUNCTION {schema}.caller_sees(project_id text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    caller name;
BEGIN
    IF NOT (SELECT c.relrowsecurity FROM pg_class AS c WHERE c.oid = '{schema}.runs'::regclass) THEN
        RETURN true;
    END IF;
    caller := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END;
    RETURN {schema}.projects_of(caller) && ARRAY[caller_sees.project_id, '']
        OR EXISTS (SELECT FROM pg_class AS c WHERE c.oid = '{schema}.runs'::regclass AND pg_has_role(caller, c.relowner, 'USAGE'))
        OR EXISTS (SELECT FROM pg_roles AS r
                    WHERE (r.rolname = '{name}_worker' AND pg_has_role(caller, r.oid, 'USAGE'))
                       OR (r.rolname = caller AND r.rolbypassrls));
END $$;

-- On, or off again with false. Waits at most 2 s for a lock that claims would queue up behind.
CREATE FUNCTION {schema}.separate_projects(wanted boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    relation regclass;
BEGIN
    IF wanted AND current_setting('server_version_num')::int < 150000 THEN
        RAISE EXCEPTION 'projects can be separated from PostgreSQL 15 on'
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Before that a view reads with its owner''s rights, and all_runs would show every project.';
    END IF;
    IF wanted AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}_worker') THEN
        RAISE EXCEPTION 'the role {name}_worker is missing: workers would find nothing'
            USING ERRCODE = 'undefined_object', HINT = 'Make the roles, then: SELECT {schema}.grant_roles();';
    END IF;
    FOREACH relation IN ARRAY ARRAY['{schema}.runs', '{schema}.run_history', '{schema}.reaps', '{schema}.idempotency_keys',
        '{schema}.schedules', '{schema}.limits', '{schema}.places', '{schema}.rates', '{schema}.shares',
        '{schema}.debounces', '{schema}.steps', '{schema}.run_logs', '{schema}.children', '{schema}.child_groups', '{schema}.events',
        '{schema}.event_waits']::regclass[] LOOP
        EXECUTE format('DROP POLICY IF EXISTS own_projects ON %s', relation);
        EXECUTE format('DROP POLICY IF EXISTS workers ON %s', relation);
        IF wanted THEN
            -- The look-up is a sub-select, made once a statement and not once a row.
            EXECUTE format('CREATE POLICY own_projects ON %s USING '
                '((SELECT {schema}.projects_of(current_user)) && ARRAY[project_id, ''''])', relation);
            -- The planner makes "true OR .." of both, and so nothing: a worker's statements stay as they were.
            EXECUTE format('CREATE POLICY workers ON %s TO %I USING (true)', relation, '{name}_worker');
        END IF;
    END LOOP;
    -- Partitions have no policy of their own: read past their parent they show nothing.
    FOR relation IN
        SELECT '{schema}.runs'::regclass UNION ALL SELECT '{schema}.reaps'::regclass
        UNION ALL SELECT '{schema}.idempotency_keys'::regclass UNION ALL SELECT '{schema}.schedules'::regclass
        UNION ALL SELECT '{schema}.steps'::regclass UNION ALL SELECT '{schema}.run_logs'::regclass
        UNION ALL SELECT '{schema}.debounces'::regclass
        UNION ALL SELECT '{schema}.children'::regclass UNION ALL SELECT '{schema}.child_groups'::regclass
        UNION ALL SELECT '{schema}.events'::regclass UNION ALL SELECT '{schema}.event_waits'::regclass
        UNION ALL SELECT '{schema}.limits'::regclass UNION ALL SELECT '{schema}.places'::regclass
        UNION ALL SELECT '{schema}.rates'::regclass UNION ALL SELECT '{schema}.shares'::regclass
        UNION ALL SELECT relid FROM pg_partition_tree('{schema}.run_history')
    LOOP
        EXECUTE format('ALTER TABLE %s %s ROW LEVEL SECURITY', relation, CASE WHEN wanted THEN 'ENABLE' ELSE 'DISABLE' END);
    END LOOP;
    IF current_setting('server_version_num')::int >= 150000 THEN
        EXECUTE format('ALTER VIEW {schema}.all_runs SET (security_invoker = %s)', wanted);
    END IF;
END $$;

-- Bind a role to a project, or to every one by ''. What its members inherit is bound as well.
CREATE FUNCTION {schema}.bind_role(role_name text, project_id text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = bind_role.role_name) THEN
        RAISE EXCEPTION 'there is no role "%"', bind_role.role_name USING ERRCODE = 'undefined_object',
            HINT = 'CREATE ROLE makes it; names count as they are written, in upper and lower case.';
    END IF;
    INSERT INTO {schema}.project_roles VALUES (bind_role.role_name, bind_role.project_id) ON CONFLICT DO NOTHING;
END $$;

-- End a binding; without a project all those of the role. Tells how many it ended.
CREATE FUNCTION {schema}.unbind_role(role_name text, project_id text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ended bigint;
BEGIN
    DELETE FROM {schema}.project_roles AS b
     WHERE b.role_name = unbind_role.role_name
       AND (unbind_role.project_id IS NULL OR b.project_id = unbind_role.project_id);
    GET DIAGNOSTICS ended = ROW_COUNT;
    RETURN ended;
END $$;
