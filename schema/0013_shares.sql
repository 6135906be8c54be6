-- What part of the slots a project gets while several have something ready: by weight, 1 unless it is said here.

CREATE TABLE {schema}.shares (
    project_id text COLLATE "C" NOT NULL PRIMARY KEY,
    weight     double precision NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT project_id_has_1_to_200_characters CHECK (char_length(project_id) BETWEEN 1 AND 200),
    CONSTRAINT weight_is_between_a_thousandth_and_1000 CHECK (weight BETWEEN 0.001 AND 1000)
);

-- Give a project this weight; 1 is what every project has.
CREATE FUNCTION {schema}.set_share(project_id text, weight float8) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    -- A share is taken from all the others: who is bound to a project may not say.
    IF NOT {schema}.caller_sees('') THEN
        RAISE EXCEPTION 'this role may not give shares' USING ERRCODE = 'insufficient_privilege',
            HINT = 'It is bound to some projects, and a share is taken from all the others.';
    END IF;
    IF set_share.weight = 1 THEN
        DELETE FROM {schema}.shares AS s WHERE s.project_id = set_share.project_id;
        RETURN;
    END IF;
    INSERT INTO {schema}.shares AS s (project_id, weight) VALUES (set_share.project_id, set_share.weight)
    ON CONFLICT ON CONSTRAINT shares_pkey DO UPDATE SET weight = excluded.weight, changed_at = now();
END $$;
