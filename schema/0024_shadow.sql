-- Shadow: live runs that are executed once more by another version of their handler, without effects, and compared.
--
-- A rule in mirrors chooses; the statement that settles a live run writes the pair, so that each chosen run is there
-- exactly once or was not settled. A worker that has the version makes the copy when it has a slot for it, from the
-- history: what waits costs a row here and nothing in runs. A copy is in runs only while it is executed or waits to be
-- executed again; there it `waits_for` 'shadow', which no claim of live runs reads.

CREATE TABLE {schema}.mirrors (
    mirror_id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text COLLATE "C" NOT NULL,
    project_id  text COLLATE "C" NOT NULL DEFAULT '',  -- empty: every project
    version     text COLLATE "C" NOT NULL,
    percent     double precision NOT NULL,
    until       timestamptz,                           -- null: until it is removed
    per_hour    integer,                               -- so many at most in each hour of the clock; null: any number
    changed_at  timestamptz NOT NULL DEFAULT now(),
    -- Kept by whoever makes copies.
    hour        timestamptz,                           -- in which
    in_hour     integer     NOT NULL DEFAULT 0,        -- so many copies were made
    full_until  timestamptz,                           -- settles choose none any more before
    capped      bigint      NOT NULL DEFAULT 0,        -- so many were chosen and not copied, being too many
    CONSTRAINT mirrors_once UNIQUE (kind, project_id, version),
    CONSTRAINT kind_has_1_to_200_characters CHECK (char_length(kind) BETWEEN 1 AND 200),
    CONSTRAINT project_id_has_at_most_200_characters CHECK (char_length(project_id) <= 200),
    CONSTRAINT version_has_1_to_100_characters CHECK (char_length(version) BETWEEN 1 AND 100),
    CONSTRAINT percent_is_above_0_and_at_most_100 CHECK (percent > 0 AND percent <= 100),
    CONSTRAINT per_hour_is_between_1_and_1000000 CHECK (per_hour BETWEEN 1 AND 1000000)
);

-- Chosen while the hour was full. Only ever inserted by settles, which so wait for nobody; added up by the next claim.
CREATE TABLE {schema}.mirror_skips (
    skip_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mirror_id integer NOT NULL,
    runs      integer NOT NULL
);

CREATE TABLE {schema}.shadow_pairs (
    live_run_id   uuid        NOT NULL,
    shadow_run_id uuid,                                -- null: no copy was made yet
    chosen_at     timestamptz NOT NULL DEFAULT now(),
    copied_at     timestamptz,
    compared_at   timestamptz,
    live_s        double precision,                    -- how long each took
    shadow_s      double precision,
    mirror_id     integer,                             -- null: chosen by a replay
    kind          text COLLATE "C" NOT NULL,
    project_id    text COLLATE "C" NOT NULL,
    version       text COLLATE "C" NOT NULL,
    live_state    text COLLATE "C",
    shadow_state  text COLLATE "C",
    became        text COLLATE "C",                    -- null: not known yet
    ways          text[],                              -- to differ
    diff          text,
    CONSTRAINT shadow_pairs_pkey PRIMARY KEY (live_run_id, version),
    CONSTRAINT became_is_known CHECK (became IN ('same', 'different', 'gone', 'interrupted'))
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX shadow_pairs_shadow_run_id ON {schema}.shadow_pairs (shadow_run_id) WHERE shadow_run_id IS NOT NULL;
CREATE INDEX shadow_pairs_waiting ON {schema}.shadow_pairs (kind, version, chosen_at)
    WHERE shadow_run_id IS NULL AND became IS NULL;
CREATE INDEX shadow_pairs_copied ON {schema}.shadow_pairs (kind, version, copied_at)
    WHERE shadow_run_id IS NOT NULL AND became IS NULL;
CREATE INDEX shadow_pairs_became ON {schema}.shadow_pairs (kind, version, became, chosen_at) WHERE became IS NOT NULL;

-- Copies that wait to be executed again: they were given back, or their worker is gone.
CREATE INDEX runs_shadow ON {schema}.runs (kind, version, run_at) WHERE waits_for = 'shadow' AND state = 'pending';

-- Where a run stands between 0 and 100, always the same: a rule takes those below its percentage. notifyworker/mirrors.py
-- reckons the same.
CREATE FUNCTION {schema}.part_of(run_id uuid) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE  -- bound early, and without a setting: so it is put in where it is called
RETURN ('x' || left(md5(run_id::text), 8))::bit(32)::bigint * 100.0 / 4294967296.0;

-- Called by the statement that settles runs, with those that it settled.
CREATE FUNCTION {schema}.mirror(run_ids uuid[], kinds text[], project_ids text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    WITH chosen AS MATERIALIZED (
        SELECT m.mirror_id, m.version, r.run_id, r.kind, r.project_id, coalesce(m.full_until > now(), false) AS is_full
          FROM unnest(mirror.run_ids, mirror.kinds, mirror.project_ids) AS r (run_id, kind, project_id)
          JOIN {schema}.mirrors AS m ON m.kind = r.kind AND m.project_id IN ('', r.project_id)
         WHERE (m.until IS NULL OR m.until > now()) AND {schema}.part_of(r.run_id) < m.percent
    ), paired AS (
        INSERT INTO {schema}.shadow_pairs (live_run_id, kind, project_id, version, mirror_id)
        SELECT run_id, kind, project_id, version, mirror_id FROM chosen WHERE NOT is_full
        ON CONFLICT DO NOTHING
    )
    INSERT INTO {schema}.mirror_skips (mirror_id, runs)
    SELECT mirror_id, count(*) FROM chosen WHERE is_full GROUP BY mirror_id;
END $$;

-- Make a rule, or change it to exactly this.
CREATE FUNCTION {schema}.set_mirror(
    kind text, version text, percent double precision, project_id text DEFAULT NULL, until timestamptz DEFAULT NULL,
    per_hour integer DEFAULT NULL
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF NOT {schema}.caller_sees(coalesce(set_mirror.project_id, '')) THEN
        RAISE EXCEPTION 'this role may not mirror runs of %',
            coalesce('the project "' || set_mirror.project_id || '"', 'every project')
            USING ERRCODE = 'insufficient_privilege', HINT = 'The owner of the schema binds roles by bind_role().';
    END IF;
    IF set_mirror.until <= now() THEN
        RAISE EXCEPTION 'until must be in the future' USING ERRCODE = 'invalid_parameter_value', COLUMN = 'until',
            HINT = 'Leave it out to mirror until the rule is removed.';
    END IF;
    INSERT INTO {schema}.mirrors AS m (kind, project_id, version, percent, until, per_hour)
    VALUES (set_mirror.kind, coalesce(set_mirror.project_id, ''), set_mirror.version, set_mirror.percent, set_mirror.until,
        set_mirror.per_hour)
    ON CONFLICT ON CONSTRAINT mirrors_once DO UPDATE
       SET percent = excluded.percent, until = excluded.until, per_hour = excluded.per_hour, changed_at = now(),
           full_until = NULL;
    PERFORM {schema}.tell_mirrors();
END $$;

-- End exactly this rule; false if there was none. What it has chosen is still copied and compared.
CREATE FUNCTION {schema}.remove_mirror(kind text, version text, project_id text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF NOT {schema}.caller_sees(coalesce(remove_mirror.project_id, '')) THEN
        RAISE EXCEPTION 'this role may not change what is mirrored of %',
            coalesce('the project "' || remove_mirror.project_id || '"', 'every project')
            USING ERRCODE = 'insufficient_privilege', HINT = 'The owner of the schema binds roles by bind_role().';
    END IF;
    DELETE FROM {schema}.mirrors AS m
     WHERE m.kind = remove_mirror.kind AND m.version = remove_mirror.version
       AND m.project_id = coalesce(remove_mirror.project_id, '');
    IF FOUND THEN
        PERFORM {schema}.tell_mirrors();
    END IF;
    RETURN FOUND;
END $$;

CREATE FUNCTION {schema}.tell_mirrors() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', 'mirrors:');
    END IF;
END $$;

-- How much room a rule has left in this hour; null: any number, or another claim is counting at this moment.
CREATE FUNCTION {schema}.mirror_room(mirror_id integer, OUT room integer, OUT is_mine boolean)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    this_hour timestamptz := date_trunc('hour', now(), 'UTC');
    m         {schema}.mirrors;
    skipped   bigint;
BEGIN
    SELECT * INTO m FROM {schema}.mirrors AS r WHERE r.mirror_id = mirror_room.mirror_id FOR UPDATE SKIP LOCKED;
    is_mine := FOUND;
    IF NOT is_mine OR m.per_hour IS NULL THEN
        RETURN;
    END IF;
    WITH added AS (DELETE FROM {schema}.mirror_skips AS s WHERE s.mirror_id = m.mirror_id RETURNING s.runs)
    SELECT coalesce(sum(runs), 0) INTO skipped FROM added;
    IF m.hour IS DISTINCT FROM this_hour OR skipped > 0 THEN
        UPDATE {schema}.mirrors AS r
           SET in_hour = CASE WHEN r.hour = this_hour THEN r.in_hour ELSE 0 END, hour = this_hour, capped = r.capped + skipped
         WHERE r.mirror_id = m.mirror_id
        RETURNING * INTO m;
    END IF;
    room := greatest(0, m.per_hour - m.in_hour);
END $$;

-- Pairs that wait, locked: at most `wanted`, and of a rule no more than its hour has room for. What is chosen beyond that is
-- counted, and not copied.
CREATE FUNCTION {schema}.take_pairs(kind text, version text, project_ids text[], wanted integer) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    of_rule record;
    counted record;
    mine    uuid[];
    surplus bigint;
    taken   uuid[] := '{}';
BEGIN
    IF take_pairs.wanted <= 0 THEN
        RETURN taken;
    END IF;
    FOR of_rule IN
        SELECT p.mirror_id, array_agg(p.live_run_id ORDER BY p.chosen_at) AS run_ids
          FROM (SELECT w.mirror_id, w.live_run_id, w.chosen_at FROM {schema}.shadow_pairs AS w
                 WHERE w.shadow_run_id IS NULL AND w.became IS NULL AND w.kind = take_pairs.kind
                   AND w.version = take_pairs.version
                   AND (take_pairs.project_ids IS NULL OR w.project_id = ANY (take_pairs.project_ids))
                   AND NOT EXISTS (
                       SELECT FROM {schema}.pauses AS q
                        WHERE q.kind IN ('', w.kind) AND q.project_id IN ('', w.project_id)
                          AND (q.until IS NULL OR q.until > now()))
                 ORDER BY w.kind, w.version, w.chosen_at LIMIT take_pairs.wanted
                   FOR UPDATE OF w SKIP LOCKED) AS p
         GROUP BY p.mirror_id
    LOOP
        mine := of_rule.run_ids;
        SELECT * INTO counted FROM {schema}.mirror_room(of_rule.mirror_id);
        IF NOT counted.is_mine AND EXISTS (SELECT FROM {schema}.mirrors AS m WHERE m.mirror_id = of_rule.mirror_id) THEN
            CONTINUE;  -- another is counting at this moment
        END IF;
        IF counted.room IS NOT NULL THEN
            mine := mine[: counted.room];
            IF counted.room <= cardinality(of_rule.run_ids) THEN
                WITH gone AS (
                    DELETE FROM {schema}.shadow_pairs AS p
                     WHERE p.ctid = ANY (ARRAY(
                        SELECT w.ctid FROM {schema}.shadow_pairs AS w
                         WHERE w.shadow_run_id IS NULL AND w.became IS NULL AND w.kind = take_pairs.kind
                           AND w.version = take_pairs.version AND w.mirror_id = of_rule.mirror_id
                           AND w.live_run_id <> ALL (mine)
                         LIMIT 10000 FOR UPDATE SKIP LOCKED))
                    RETURNING 1)
                SELECT count(*) INTO surplus FROM gone;
                UPDATE {schema}.mirrors AS m
                   SET capped = m.capped + surplus, full_until = m.hour + interval '1 hour'
                 WHERE m.mirror_id = of_rule.mirror_id;
            END IF;
            UPDATE {schema}.mirrors AS m SET in_hour = m.in_hour + cardinality(mine) WHERE m.mirror_id = of_rule.mirror_id;
        END IF;
        taken := taken || mine;
    END LOOP;
    RETURN taken;
END $$;

-- Copies of live runs, made and leased in one: for each version that a worker has, its kind at the same place in `kinds`.
-- First those that wait to be executed again. No key, no limit and no idempotency key concerns them.
CREATE FUNCTION {schema}.claim_shadow(
    kinds text[], versions text[], attempts smallint[], timeouts_s float8[], project_ids text[], wanted integer,
    lease_owner text, lease_s float8
) RETURNS TABLE (
    run_id uuid, lease_token bigint, kind text, project_id text, priority smallint, due_at_s float8, payload jsonb,
    headers jsonb, attempt smallint, max_attempts smallint, was_shadow boolean, timeout_s float8, expired boolean,
    waited_s float8, version text, copy_of uuid
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    of_kind record;
    ids     uuid[];
    live    uuid[];
BEGIN
    PERFORM set_config('notifyworker.quiet', 'on', true);  -- a copy wakes nobody: it is claimed here
    FOR of_kind IN
        SELECT * FROM unnest(claim_shadow.kinds, claim_shadow.versions, claim_shadow.attempts, claim_shadow.timeouts_s)
            AS a (kind, version, attempts, timeout_s)
    LOOP
        EXIT WHEN claim_shadow.wanted <= 0;
        ids := ARRAY(
            SELECT r.run_id FROM {schema}.runs AS r
             WHERE r.waits_for = 'shadow' AND r.state = 'pending' AND r.kind = of_kind.kind AND r.version = of_kind.version
               AND r.run_at <= now() AND (claim_shadow.project_ids IS NULL OR r.project_id = ANY (claim_shadow.project_ids))
             ORDER BY r.run_at LIMIT claim_shadow.wanted FOR UPDATE SKIP LOCKED);
        live := {schema}.take_pairs(of_kind.kind, of_kind.version, claim_shadow.project_ids,
                                    claim_shadow.wanted - cardinality(ids));
        ids := ids || {schema}.copy_runs(live, of_kind.version);
        CONTINUE WHEN cardinality(ids) = 0;
        RETURN QUERY
            UPDATE {schema}.runs AS r
               SET state = 'running', attempt = r.attempt + 1, lease_token = r.lease_token + 1,
                   lease_owner = claim_shadow.lease_owner, started_at = now(),
                   lease_expires_at = now() + claim_shadow.lease_s * interval '1 s',
                   max_attempts = coalesce(r.max_attempts, of_kind.attempts),
                   timeout = coalesce(r.timeout, of_kind.timeout_s * interval '1 s')
             WHERE r.run_id = ANY (ids)
            RETURNING r.run_id, r.lease_token, r.kind, r.project_id, r.priority, date_part('epoch', r.run_at), r.payload,
                r.headers, r.attempt, r.max_attempts, r.is_shadow, date_part('epoch', r.timeout), false,
                date_part('epoch', now() - greatest(r.run_at, r.created_at)), r.version, r.replay_of;
        claim_shadow.wanted := claim_shadow.wanted - cardinality(ids);
    END LOOP;
END $$;

-- Copies of settled runs, pending; each is noted with its pair. A run that is in the history no more, since it was retried,
-- forgotten or is too old, has none, and its pair says so.
CREATE FUNCTION {schema}.copy_runs(live_run_ids uuid[], version text) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    most   numeric := (SELECT (s.value #>> '{}')::numeric FROM {schema}.settings AS s WHERE s.name = 'max_payload_bytes');
    ids    uuid[];
    copied uuid[];
BEGIN
    IF cardinality(live_run_ids) = 0 THEN
        RETURN '{}';
    END IF;
    WITH live AS MATERIALIZED (
        SELECT l.run_id AS live_id, {schema}.uuid7() AS new_id, h.*
          FROM unnest(copy_runs.live_run_ids) AS l (run_id), LATERAL (
              SELECT h.project_id, h.kind, h.payload, h.max_attempts, h.timeout, h.headers, h.state,
                     extract(epoch FROM h.finished_at - h.started_at)::float8 AS took_s
                FROM {schema}.run_history AS h
               WHERE h.run_id = l.run_id AND NOT h.is_shadow
               ORDER BY h.finished_at DESC LIMIT 1) AS h
         WHERE octet_length(h.payload::text) <= most  -- the limit was lowered since
    ), made AS (
        INSERT INTO {schema}.runs (run_id, project_id, kind, payload, max_attempts, timeout, is_shadow, headers)
        SELECT new_id, project_id, kind, payload, max_attempts, timeout, true, headers FROM live
        RETURNING run_id
    ), noted AS (
        UPDATE {schema}.shadow_pairs AS p
           SET shadow_run_id = live.new_id, copied_at = now(), live_state = live.state, live_s = live.took_s
          FROM live WHERE p.live_run_id = live.live_id AND p.version = copy_runs.version
        RETURNING p.shadow_run_id, p.live_run_id
    )
    SELECT coalesce(array_agg(shadow_run_id), '{}'), coalesce(array_agg(live_run_id), '{}') INTO ids, copied
      FROM (SELECT noted.* FROM noted JOIN made ON made.run_id = noted.shadow_run_id) AS both_made;
    UPDATE {schema}.shadow_pairs AS p SET became = 'gone', compared_at = now()
     WHERE p.live_run_id = ANY (copy_runs.live_run_ids) AND p.live_run_id <> ALL (copied) AND p.version = copy_runs.version;
    UPDATE {schema}.runs AS r SET waits_for = 'shadow', version = copy_runs.version, shadow_by = 'mirror', replay_of = live.run_id
      FROM unnest(ids, copied) AS live (new_id, run_id) WHERE r.run_id = live.new_id;
    RETURN ids;
END $$;

-- The first thing in the transaction of a shadow run's handler: from here on it can't be committed.
CREATE TABLE {schema}.seals (
    seal_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY
);
CREATE FUNCTION {schema}.refuse_commit() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'a shadow run has no effects: nothing of its transaction is committed'
        USING ERRCODE = 'invalid_transaction_termination', HINT = 'The worker ends the transaction of run.transaction() itself.';
END $$;
CREATE CONSTRAINT TRIGGER refuse_commit AFTER INSERT ON {schema}.seals DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION {schema}.refuse_commit();
CREATE FUNCTION {schema}.seal() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO {schema}.seals DEFAULT VALUES;
END $$;

-- How results and effects of a kind are compared. Paths are as in the report: result.items.*.at; * stands for any one name or
-- place. What is within a tolerance, absolute, or relative where it ends in %, is the same.
CREATE TABLE {schema}.comparisons (
    kind       text COLLATE "C" NOT NULL PRIMARY KEY,
    ignored    text[]      NOT NULL DEFAULT '{}',
    tolerances jsonb       NOT NULL DEFAULT '{}',
    ordered    boolean     NOT NULL DEFAULT true,   -- whether effects must come in the same order
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT kind_has_1_to_200_characters CHECK (char_length(kind) BETWEEN 1 AND 200),
    CONSTRAINT ignored_has_at_most_200_paths CHECK (cardinality(ignored) <= 200),
    CONSTRAINT tolerances_is_an_object CHECK (jsonb_typeof(tolerances) = 'object')
);

-- Say how a kind is compared; what was compared already is compared again.
CREATE FUNCTION {schema}.set_comparison(kind text, ignored text[], tolerances jsonb, ordered boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO {schema}.comparisons AS c (kind, ignored, tolerances, ordered)
    VALUES (set_comparison.kind, set_comparison.ignored, set_comparison.tolerances, set_comparison.ordered)
    ON CONFLICT ON CONSTRAINT comparisons_pkey DO UPDATE
       SET ignored = excluded.ignored, tolerances = excluded.tolerances, ordered = excluded.ordered, changed_at = now();
    UPDATE {schema}.shadow_pairs AS p SET became = NULL, ways = NULL, diff = NULL
     WHERE p.kind = set_comparison.kind AND p.became IN ('same', 'different');
    PERFORM {schema}.tell_mirrors();
END $$;

-- Settled runs of the past are chosen, at most so many a call, each once a version: `last` is where to go on, null at the end.
CREATE FUNCTION {schema}.replay_in_shadow(
    kind text, version text, project_id text DEFAULT NULL, finished_after timestamptz DEFAULT NULL,
    finished_before timestamptz DEFAULT NULL, behind uuid DEFAULT NULL, max_runs integer DEFAULT 1000,
    OUT done integer, OUT skipped integer, OUT last uuid
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET enable_sort = off AS $$
#variable_conflict use_column
DECLARE
    ids      uuid[];
    projects text[];
BEGIN
    SELECT coalesce(array_agg(f.run_id), '{}'), coalesce(array_agg(f.project_id), '{}') INTO ids, projects FROM (
        SELECT h.run_id, h.project_id FROM {schema}.run_history AS h
         WHERE h.kind = replay_in_shadow.kind AND (replay_in_shadow.behind IS NULL OR h.run_id > replay_in_shadow.behind)
           AND h.state IN ('completed', 'failed') AND NOT h.is_shadow
           AND (replay_in_shadow.project_id IS NULL OR h.project_id = replay_in_shadow.project_id)
           AND (replay_in_shadow.finished_after IS NULL OR h.finished_at >= replay_in_shadow.finished_after)
           AND (replay_in_shadow.finished_before IS NULL OR h.finished_at < replay_in_shadow.finished_before)
           AND {schema}.caller_sees(h.project_id)
         ORDER BY h.run_id LIMIT replay_in_shadow.max_runs) AS f;
    INSERT INTO {schema}.shadow_pairs (live_run_id, kind, project_id, version)
    SELECT f.run_id, replay_in_shadow.kind, f.project_id, replay_in_shadow.version FROM unnest(ids, projects) AS f (run_id, project_id)
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS done = ROW_COUNT;
    skipped := cardinality(ids) - done;
    last := CASE WHEN cardinality(ids) = replay_in_shadow.max_runs THEN ids[replay_in_shadow.max_runs] END;
    IF done > 0 THEN
        PERFORM {schema}.tell_mirrors();
    END IF;
END $$;

-- Forget what was compared of a version, to begin anew, as after a change of its code. Copies that are executed go on, and are
-- compared with nothing. Returns how many pairs there were.
CREATE FUNCTION {schema}.reset_shadow(kind text, version text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    forgotten bigint;
BEGIN
    DELETE FROM {schema}.shadow_pairs AS p
     WHERE p.kind = reset_shadow.kind AND p.version = reset_shadow.version AND {schema}.caller_sees(p.project_id);
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten;
END $$;
