-- Which version of a kind's handler is executed for real: a row, so that it is switched for the whole fleet at once and
-- without a deploy. Without a row it is the handler without a version. A claim looks here in its own statement, and takes no
-- run for a version that is not live at that moment.

CREATE TABLE {schema}.versions (
    kind       text COLLATE "C" NOT NULL,
    project_id text COLLATE "C" NOT NULL DEFAULT '',  -- empty: every project that has no row of its own
    version    text COLLATE "C" NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT versions_pkey PRIMARY KEY (kind, project_id),
    CONSTRAINT kind_has_1_to_200_characters CHECK (char_length(kind) BETWEEN 1 AND 200),
    CONSTRAINT project_id_has_at_most_200_characters CHECK (char_length(project_id) <= 200),
    CONSTRAINT version_has_1_to_100_characters CHECK (char_length(version) BETWEEN 1 AND 100)
);

-- The live version of a kind for a project; null: the handler without a version.
CREATE FUNCTION {schema}.live_version(kind text, project_id text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT v.version FROM {schema}.versions AS v
             WHERE v.kind = live_version.kind AND v.project_id IN ('', live_version.project_id)
             ORDER BY v.project_id DESC LIMIT 1);
END $$;

-- Make a version of a kind live; null: the handler without a version or, of a project, what every other has. Runs that are
-- executed go on. Returns what was live before. `actor` and `why` are for the audit.
CREATE FUNCTION {schema}.set_version(
    kind text, version text, project_id text DEFAULT NULL, actor text DEFAULT NULL, why text DEFAULT NULL
) RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    whose text := coalesce(set_version.project_id, '');
    was   text;
BEGIN
    IF NOT {schema}.caller_sees(whose) THEN
        RAISE EXCEPTION 'this role may not switch versions of %',
            coalesce('the project "' || set_version.project_id || '"', 'every project')
            USING ERRCODE = 'insufficient_privilege', HINT = 'The owner of the schema binds roles by bind_role().';
    END IF;
    LOCK TABLE {schema}.versions IN SHARE ROW EXCLUSIVE MODE;  -- two at once: the audit tells the right order
    was := {schema}.live_version(set_version.kind, whose);
    IF set_version.version IS NULL THEN
        DELETE FROM {schema}.versions AS v WHERE v.kind = set_version.kind AND v.project_id = whose;
    ELSE
        INSERT INTO {schema}.versions AS v (kind, project_id, version)
        VALUES (set_version.kind, whose, set_version.version)
        ON CONFLICT ON CONSTRAINT versions_pkey DO UPDATE SET version = excluded.version, changed_at = now();
    END IF;
    INSERT INTO {schema}.audit (actor, action, target, matched, changed, outcome)
    VALUES (coalesce(set_version.actor, session_user), 'version.set', jsonb_build_object(
        'kind', set_version.kind, 'project_id', nullif(whose, ''), 'from', was, 'to', set_version.version), 1, 1, set_version.why);
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', 'versions:');
    END IF;
    RETURN was;
END $$;

-- A worker starts that has versions of a kind and no handler without one: its first is live unless somebody has said
-- otherwise, here or for a project.
CREATE FUNCTION {schema}.adopt_versions(kinds text[], versions text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO {schema}.versions (kind, version) SELECT * FROM unnest(adopt_versions.kinds, adopt_versions.versions)
    ON CONFLICT DO NOTHING;
    IF FOUND AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', 'versions:');
    END IF;
END $$;
