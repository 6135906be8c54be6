-- Runs that runs have started (run.start), and parents that wait for them (run.join). A row a child is written together with
-- the child itself; its outcome is copied here in the transaction that settles it, whoever settles it, so that it is there
-- when its parent looks, whatever becomes of the history meanwhile. A run that has no parent pays nothing.

CREATE TABLE {schema}.children (
    child_id          uuid        NOT NULL,
    parent_id         uuid        NOT NULL,
    parent_created_at timestamptz NOT NULL,  -- as in steps
    started_at        timestamptz NOT NULL DEFAULT now(),
    settled_at        timestamptz,
    position          integer     NOT NULL,  -- 1 is the first that the parent's handler started
    is_detached       boolean     NOT NULL,  -- it goes on when its parent is cancelled
    project_id        text COLLATE "C" NOT NULL,
    kind              text COLLATE "C" NOT NULL,
    state             text COLLATE "C",      -- null: it is live
    error_code        text COLLATE "C",
    error             text,
    result            jsonb,

    CONSTRAINT children_pkey PRIMARY KEY (parent_id, parent_created_at, position),
    CONSTRAINT position_is_between_1_and_100000 CHECK (position BETWEEN 1 AND 100000),
    -- Deleted: somebody has taken it away, and how it ended is not known.
    CONSTRAINT state_is_terminal_or_deleted CHECK (state IN ('completed', 'failed', 'cancelled', 'deleted')),
    CONSTRAINT settled_at_is_set_with_the_state CHECK ((state IS NULL) = (settled_at IS NULL))
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = false);

CREATE UNIQUE INDEX children_child_id ON {schema}.children (child_id);
CREATE INDEX children_live ON {schema}.children (parent_id, parent_created_at, position) WHERE state IS NULL;
CREATE INDEX children_started_at ON {schema}.children USING brin (started_at);

-- Children that are waited for together: by their parent, or to have one more run inserted, the *last* one.
CREATE TABLE {schema}.child_groups (
    parent_id         uuid        NOT NULL,
    parent_created_at timestamptz NOT NULL,
    made_at           timestamptz NOT NULL DEFAULT now(),
    closed_at         timestamptz,           -- the parent has seen their outcomes, or the last run is inserted
    ends_at           timestamptz,           -- the parent waits no longer than that; null: for ever
    run_at            timestamptz,           -- and goes back to this place if it need not wait so long
    lease_token       bigint,                -- the lease that it gave up last, to wait until then
    last_id           uuid,                  -- null: the parent itself waits
    number            integer     NOT NULL,  -- 1 is the first that the parent's handler asked for
    last_position     integer,
    failed_position   integer,               -- the child for whose failure the parent did not wait for the others
    is_late           boolean     NOT NULL DEFAULT false,  -- its time was over before they were settled
    project_id        text COLLATE "C" NOT NULL,
    on_failure        text COLLATE "C" NOT NULL DEFAULT 'wait',
    last_kind         text COLLATE "C",
    positions         int4multirange NOT NULL,
    last_payload      jsonb,
    last_headers      jsonb,

    CONSTRAINT child_groups_pkey PRIMARY KEY (parent_id, parent_created_at, number),
    CONSTRAINT on_failure_is_wait_raise_or_cancel CHECK (on_failure IN ('wait', 'raise', 'cancel')),
    CONSTRAINT last_run_is_whole CHECK (num_nulls(last_id, last_position, last_kind, last_payload, last_headers) IN (0, 5))
);
CREATE INDEX child_groups_open ON {schema}.child_groups (parent_id, number) WHERE closed_at IS NULL;
CREATE INDEX child_groups_made_at ON {schema}.child_groups USING brin (made_at);

-- Parents that somebody has to look at, who comes after the transaction that wrote this: see tell_parent.
CREATE TABLE {schema}.child_checks (
    check_id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    parent_id         uuid        NOT NULL,
    parent_created_at timestamptz,           -- null: it was cancelled, and so are its children
    CONSTRAINT parent_id_is_set CHECK (parent_id IS NOT NULL)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000, vacuum_truncate = false);

CREATE FUNCTION {schema}.have_checked(parent_id uuid, parent_created_at timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO {schema}.child_checks (parent_id, parent_created_at)
    VALUES (have_checked.parent_id, have_checked.parent_created_at);
    IF pg_notification_queue_usage() < 0.5 THEN  -- one message a transaction
        PERFORM pg_notify('{name}', 'check:');
    END IF;
END $$;

-- Whether anybody comes who looks at these children's parent after this transaction, so that this one need not.
--
-- Two that settle the last two children at the same moment see neither each other's outcome, nor may one wait for the other:
-- a settle is a batch, and waits for nobody. So each looks, once its own outcome is written, for another child whose run
-- nobody has touched: its xmax is 0. Whoever settles that one writes there first and looks then, which is later than now, and
-- so sees what this one has written, or at least that it is being written. `nobody`: none is live. `unsure`: each that is
-- live is being settled by others at this moment, or merely locked; then a note is left for who comes afterwards.
CREATE FUNCTION {schema}.who_comes_after(parent_id uuid, parent_created_at timestamptz, positions int4multirange) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    untouched boolean;
    live      integer;
BEGIN
    SELECT bool_or(r.xmax = 0), count(*) INTO untouched, live
      FROM (SELECT c.child_id FROM {schema}.children AS c
             WHERE c.parent_id = who_comes_after.parent_id AND c.parent_created_at = who_comes_after.parent_created_at
               AND c.state IS NULL AND c.position <@ who_comes_after.positions
             -- The last ones are the last to be settled, as a rule.
             ORDER BY c.position DESC LIMIT 4) AS c
      LEFT JOIN {schema}.runs AS r ON r.run_id = c.child_id;
    RETURN CASE WHEN live = 0 THEN 'nobody' WHEN untouched THEN 'another' ELSE 'unsure' END;
END $$;

-- Children of this parent are settled: let it go on, or have the last run inserted, if that is what they waited for.
CREATE FUNCTION {schema}.tell_parent(parent_id uuid, parent_created_at timestamptz, settled int4multirange) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    g     {schema}.child_groups;
    comes text;
BEGIN
    FOR g IN SELECT * FROM {schema}.child_groups AS h
              WHERE h.parent_id = tell_parent.parent_id AND h.parent_created_at = tell_parent.parent_created_at
                AND h.closed_at IS NULL AND h.positions && tell_parent.settled
                -- A parent that is gone, as when it was cancelled with its children, waits no longer.
                AND (h.last_id IS NOT NULL OR EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = h.parent_id))
    LOOP
        comes := {schema}.who_comes_after(tell_parent.parent_id, tell_parent.parent_created_at, g.positions);
        IF comes = 'nobody' OR {schema}.failed_of(g) IS NOT NULL THEN
            CONTINUE WHEN {schema}.end_group(g);
        ELSIF comes <> 'unsure' THEN
            CONTINUE;
        END IF;
        PERFORM {schema}.have_checked(tell_parent.parent_id, tell_parent.parent_created_at);
    END LOOP;
END $$;

-- What was waited for is there. Waits for nobody: false if somebody has the parent or the group locked, so that it must be
-- looked at again.
CREATE FUNCTION {schema}.end_group(g {schema}.child_groups) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    parent {schema}.runs;
BEGIN
    IF g.last_id IS NULL THEN
        SELECT * INTO parent FROM {schema}.runs AS r
         WHERE r.run_id = g.parent_id AND r.created_at = g.parent_created_at FOR NO KEY UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN NOT EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = g.parent_id AND r.created_at = g.parent_created_at);
        ELSIF parent.waits_for = 'children' THEN
            UPDATE {schema}.runs AS r SET waits_for = NULL WHERE r.run_id = g.parent_id;
            PERFORM {schema}.announce(parent.run_at);
        ELSIF parent.state = 'pending' AND parent.lease_token = g.lease_token AND parent.run_at > clock_timestamp() THEN
            UPDATE {schema}.runs AS r SET run_at = g.run_at WHERE r.run_id = g.parent_id;
            PERFORM {schema}.announce(g.run_at);
        END IF;
        RETURN true;
    END IF;
    UPDATE {schema}.child_groups AS h SET closed_at = now()
     WHERE h.ctid = (
        SELECT i.ctid FROM {schema}.child_groups AS i
         WHERE i.parent_id = g.parent_id AND i.parent_created_at = g.parent_created_at AND i.number = g.number
           AND i.closed_at IS NULL FOR UPDATE SKIP LOCKED);
    IF FOUND THEN
        INSERT INTO {schema}.children (child_id, parent_id, parent_created_at, position, is_detached, project_id, kind)
        VALUES (g.last_id, g.parent_id, g.parent_created_at, g.last_position, false, g.project_id, g.last_kind);
        INSERT INTO {schema}.runs (run_id, kind, payload, project_id, headers, parent_id)
        VALUES (g.last_id, g.last_kind, g.last_payload, g.project_id, g.last_headers, g.parent_id);
        RETURN true;
    END IF;
    RETURN NOT EXISTS (SELECT FROM {schema}.child_groups AS i
                        WHERE i.parent_id = g.parent_id AND i.parent_created_at = g.parent_created_at AND i.number = g.number
                          AND i.closed_at IS NULL);
END $$;

-- Whoever takes children from the live runs, by whatever statement, has settled them, or deleted them without a trace. A
-- statement may take many: their ids are gathered row by row, and dealt with together at its end.
CREATE FUNCTION {schema}.child_ended() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('notifyworker.ended', concat(current_setting('notifyworker.ended', true), ',', OLD.run_id), true);
    RETURN NULL;
END $$;

CREATE FUNCTION {schema}.end_children() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    ids    uuid[] := string_to_array(substr(coalesce(current_setting('notifyworker.ended', true), ''), 2), ',')::uuid[];
    mine   tid[];
    parent record;
BEGIN
    PERFORM set_config('notifyworker.ended', '', true);
    mine := ARRAY(
        SELECT live.place FROM unnest(ids) AS i (id), LATERAL (
            SELECT c.ctid AS place FROM {schema}.children AS c
             -- The CASE keeps the planner from children_live, which it takes for empty. And a setting says what anybody
             -- wants: only what is really gone.
             WHERE c.child_id = i.id AND CASE WHEN c.state IS NULL THEN true END AND NOT EXISTS (
                       SELECT FROM {schema}.runs AS r WHERE r.run_id = i.id)
               FOR UPDATE SKIP LOCKED) AS live);
    FOR parent IN
        WITH settled AS (
            UPDATE {schema}.children AS c
               SET settled_at = now(), (state, error_code, error, result) = (
                   SELECT coalesce(max(h.state), 'deleted'), max(h.error_code), left(max(h.errors #>> '{-1,message}'), 1000),
                          (array_agg(h.result))[1]
                     FROM {schema}.run_history AS h WHERE h.run_id = c.child_id AND h.finished_at = now())
             WHERE c.ctid = ANY (mine)
            RETURNING c.parent_id, c.parent_created_at, c.position
        )
        SELECT s.parent_id, s.parent_created_at, range_agg(int4range(s.position, s.position, '[]')) AS positions
          FROM settled AS s GROUP BY s.parent_id, s.parent_created_at
    LOOP
        IF current_setting('transaction_isolation') = 'read committed' THEN
            PERFORM {schema}.tell_parent(parent.parent_id, parent.parent_created_at, parent.positions);
        ELSE  -- it does not see what others have written
            PERFORM {schema}.have_checked(parent.parent_id, parent.parent_created_at);
        END IF;
    END LOOP;
    IF cardinality(mine) < cardinality(ids) THEN  -- some are locked by somebody, or nobody's children any more
        PERFORM {schema}.have_checked(c.parent_id, c.parent_created_at)
           FROM {schema}.children AS c
          WHERE c.child_id = ANY (ids) AND CASE WHEN c.state IS NULL THEN true END AND NOT EXISTS (
                    SELECT FROM {schema}.runs AS r WHERE r.run_id = c.child_id);
    END IF;
END $$;

-- Once a statement: a condition of the trigger's own would be looked at before the rows' triggers are executed.
CREATE FUNCTION {schema}.children_ended() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('notifyworker.ended', true) <> '' THEN
        PERFORM {schema}.end_children();
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER child_ended AFTER DELETE ON {schema}.runs FOR EACH ROW WHEN (OLD.parent_id IS NOT NULL)
    EXECUTE FUNCTION {schema}.child_ended();
CREATE TRIGGER children_ended AFTER DELETE ON {schema}.runs FOR EACH STATEMENT
    EXECUTE FUNCTION {schema}.children_ended();

-- running -> pending, until the children of a group are settled: no slot, no lease, no attempt and no place of a limit is
-- used meanwhile. Null if the run is not held under this lease, or locked by somebody for a moment.
CREATE FUNCTION {schema}.park(run_id uuid, lease_token bigint, lease_owner text, number integer, progress jsonb)
RETURNS text LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    was   {schema}.runs;
    g     {schema}.child_groups;
    comes text;
BEGIN
    SELECT * INTO was FROM {schema}.runs AS r
     WHERE r.run_id = park.run_id AND r.lease_token = park.lease_token AND r.lease_owner = park.lease_owner
       AND r.state = 'running' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT * INTO g FROM {schema}.child_groups AS h
     WHERE h.parent_id = park.run_id AND h.parent_created_at = was.created_at AND h.number = park.number;
    -- With an end it is a run that is due then, whoever is there; without one it is due at no time.
    UPDATE {schema}.runs AS r
       SET state = 'pending', lease_owner = NULL, lease_expires_at = NULL, started_at = NULL, is_limited = false,
           attempt = r.attempt - 1, progress = coalesce(park.progress, r.progress),
           waits_for = CASE WHEN g.ends_at IS NULL THEN 'children' END, run_at = coalesce(g.ends_at, r.run_at),
           is_shadow = r.is_shadow AND r.shadow_by IS DISTINCT FROM 'worker', shadow_by = nullif(r.shadow_by, 'worker')
     WHERE r.run_id = park.run_id;
    IF was.is_limited THEN
        DELETE FROM {schema}.places AS p WHERE p.run_id = park.run_id AND NOT p.lingers;
    END IF;
    -- From here on a child that is settled finds this row touched, or waiting. So there are two cases: one comes later, and
    -- will look; or not, and then it goes on at once.
    IF g.ends_at IS NOT NULL THEN
        UPDATE {schema}.child_groups AS h SET lease_token = was.lease_token, run_at = coalesce(h.run_at, was.run_at)
         WHERE h.parent_id = park.run_id AND h.parent_created_at = was.created_at AND h.number = park.number;
        IF g.ends_at < clock_timestamp() + interval '1 hour' THEN  -- who sleeps longer must know of it
            PERFORM {schema}.announce(g.ends_at);
        END IF;
    END IF;
    comes := {schema}.who_comes_after(park.run_id, was.created_at, g.positions);
    IF comes = 'nobody' OR {schema}.failed_of(g) IS NOT NULL THEN
        UPDATE {schema}.runs AS r SET waits_for = NULL, run_at = was.run_at WHERE r.run_id = park.run_id;
        PERFORM {schema}.announce(was.run_at);
    ELSIF comes = 'unsure' THEN
        PERFORM {schema}.have_checked(park.run_id, was.created_at);
    END IF;
    RETURN 'parked';
END $$;

-- The first child for whose failure a group's parent does not wait for the others; null if there is none.
CREATE FUNCTION {schema}.failed_of(g {schema}.child_groups) RETURNS integer
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    IF g.on_failure = 'wait' THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT min(c.position) FROM {schema}.children AS c
             WHERE c.parent_id = g.parent_id AND c.parent_created_at = g.parent_created_at
               AND c.state <> 'completed' AND c.position <@ g.positions);
END $$;

-- The parent asks for the outcomes of a group. `became`: closed (they are final), open (some are live), cancel (one has
-- failed or the time is over, and the others are to be cancelled first), late (the time was over before all were settled),
-- new (there is no such group yet). No row: it is another's by now.
CREATE FUNCTION {schema}.close_group(run_id uuid, lease_token bigint, lease_owner text, number integer)
RETURNS TABLE (became text, failed_position integer)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    was     {schema}.runs;
    g       {schema}.child_groups;
    is_live boolean;
BEGIN
    SELECT * INTO was FROM {schema}.runs AS r
     WHERE r.run_id = close_group.run_id AND r.lease_token = close_group.lease_token
       AND r.lease_owner = close_group.lease_owner AND r.state = 'running';
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO g FROM {schema}.child_groups AS h
     WHERE h.parent_id = close_group.run_id AND h.parent_created_at = was.created_at AND h.number = close_group.number
       FOR UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'new', NULL::integer;
        RETURN;
    END IF;
    IF g.closed_at IS NULL THEN
        is_live := EXISTS (SELECT FROM {schema}.children AS c
                            WHERE c.parent_id = g.parent_id AND c.parent_created_at = g.parent_created_at
                              AND c.state IS NULL AND c.position <@ g.positions);
        g.failed_position := {schema}.failed_of(g);
        g.is_late := g.is_late OR (is_live AND g.failed_position IS NULL AND coalesce(g.ends_at <= clock_timestamp(), false));
        IF is_live AND g.failed_position IS NULL AND NOT g.is_late THEN
            RETURN QUERY SELECT 'open', NULL::integer;
            RETURN;
        END IF;
        UPDATE {schema}.child_groups AS h
           SET is_late = g.is_late, closed_at = CASE WHEN NOT is_live OR g.on_failure <> 'cancel' THEN now() END,
               failed_position = CASE WHEN NOT g.is_late THEN g.failed_position END
         WHERE h.parent_id = g.parent_id AND h.parent_created_at = g.parent_created_at AND h.number = g.number;
        IF is_live AND g.on_failure = 'cancel' THEN
            RETURN QUERY SELECT 'cancel', g.failed_position;
            RETURN;
        END IF;
    END IF;
    RETURN QUERY SELECT CASE WHEN g.is_late THEN 'late' ELSE 'closed' END, g.failed_position;
END $$;

-- Cancel the live children of runs that are cancelled, and theirs, up to so many; those that are left are noted for the
-- leader. With `positions`, exactly these, detached ones too. Tells how many it cancelled.
CREATE FUNCTION {schema}.cancel_children(
    parents uuid[], max_runs integer DEFAULT 1000, positions int4multirange DEFAULT NULL, leaves_note boolean DEFAULT true
) RETURNS integer LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    child uuid;
    done  integer := 0;
BEGIN
    FOR child IN
        SELECT r.run_id FROM unnest(parents) AS p (run_id), {schema}.children AS c, {schema}.runs AS r
         WHERE c.parent_id = p.run_id AND c.state IS NULL AND r.run_id = c.child_id
           AND CASE WHEN cancel_children.positions IS NULL THEN NOT c.is_detached
                    ELSE c.position <@ cancel_children.positions END
    LOOP
        EXIT WHEN done = cancel_children.max_runs;
        -- One by one: were all of them locked at once, each would be taken for one that somebody is settling.
        PERFORM FROM {schema}.runs AS r WHERE r.run_id = child FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            PERFORM {schema}.cancel(child);
            done := done + 1;
        END IF;
    END LOOP;
    IF cancel_children.positions IS NULL AND leaves_note THEN
        PERFORM {schema}.have_checked(p.run_id, NULL)
           FROM unnest(parents) AS p (run_id)
          WHERE EXISTS (SELECT FROM {schema}.children AS c JOIN {schema}.runs AS r ON r.run_id = c.child_id
                         WHERE c.parent_id = p.run_id AND c.state IS NULL AND NOT c.is_detached);
    END IF;
    RETURN done;
END $$;

-- The same for a parent that was noted. Who looks leaves no further note, which he would find at once, for as long as a child
-- is locked: `is_done` says whether to look again.
CREATE FUNCTION {schema}.check_cancelled(parent_id uuid, max_runs integer) RETURNS TABLE (cancelled integer, is_done boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    cancelled := {schema}.cancel_children(ARRAY[check_cancelled.parent_id], check_cancelled.max_runs, leaves_note => false);
    is_done := NOT EXISTS (SELECT FROM {schema}.children AS c JOIN {schema}.runs AS r ON r.run_id = c.child_id
                            WHERE c.parent_id = check_cancelled.parent_id AND c.state IS NULL AND NOT c.is_detached);
    RETURN NEXT;
END $$;

-- For a child that is retried: it is live again for its parent, which is returned; unless that one has seen its outcome, and
-- has gone on: then it keeps what it saw, and the child is a run of its own.
CREATE FUNCTION {schema}.come_back(child_id uuid) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    child {schema}.children;
BEGIN
    SELECT * INTO child FROM {schema}.children AS c WHERE c.child_id = come_back.child_id FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM FROM {schema}.child_groups AS g
      WHERE g.parent_id = child.parent_id AND g.parent_created_at = child.parent_created_at
        AND child.position <@ g.positions FOR SHARE;
    IF EXISTS (SELECT FROM {schema}.child_groups AS g
                WHERE g.parent_id = child.parent_id AND g.parent_created_at = child.parent_created_at
                  AND child.position <@ g.positions AND g.closed_at IS NOT NULL AND NOT g.is_late) THEN
        RETURN NULL;
    END IF;
    UPDATE {schema}.children AS c SET state = NULL, settled_at = NULL, error_code = NULL, error = NULL, result = NULL
     WHERE c.child_id = come_back.child_id;
    RETURN child.parent_id;
END $$;

-- For runs that are retried from their beginning: they start their children again, and wait for their events again.
CREATE FUNCTION {schema}.start_over(run_ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM {schema}.child_groups AS g USING {schema}.runs AS r
     WHERE r.run_id = ANY (start_over.run_ids) AND g.parent_id = r.run_id AND g.parent_created_at = r.created_at;
    DELETE FROM {schema}.children AS c USING {schema}.runs AS r
     WHERE r.run_id = ANY (start_over.run_ids) AND c.parent_id = r.run_id AND c.parent_created_at = r.created_at;
    DELETE FROM {schema}.event_waits AS w WHERE w.run_id = ANY (start_over.run_ids);
END $$;

-- Look at a parent once more, after those have committed who left a note; and at children that are gone without a trace, as
-- by TRUNCATE. Waits for nobody: false if somebody has a child or the parent locked at this moment, so that it is looked at
-- again later.
CREATE FUNCTION {schema}.check_parent(parent_id uuid, parent_created_at timestamptz) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    g       {schema}.child_groups;
    child   uuid;
    is_done boolean := true;
BEGIN
    UPDATE {schema}.children AS c
       SET (state, settled_at, error_code, error, result) = (
            SELECT coalesce(max(h.state), 'deleted'), coalesce(max(h.finished_at), now()), max(h.error_code),
                   left(max(h.errors #>> '{-1,message}'), 1000), max(h.result::text)::jsonb
              FROM (SELECT i.* FROM {schema}.run_history AS i WHERE i.run_id = c.child_id
                     ORDER BY i.finished_at DESC LIMIT 1) AS h)
     WHERE c.ctid = ANY (array(
        SELECT d.ctid FROM {schema}.children AS d
         WHERE d.parent_id = check_parent.parent_id AND d.parent_created_at = check_parent.parent_created_at
           AND d.state IS NULL AND NOT EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = d.child_id)
           FOR UPDATE SKIP LOCKED));
    FOR g IN SELECT * FROM {schema}.child_groups AS h
              WHERE h.parent_id = check_parent.parent_id AND h.parent_created_at = check_parent.parent_created_at
                AND h.closed_at IS NULL
    LOOP
        child := (SELECT c.child_id FROM {schema}.children AS c
                   WHERE c.parent_id = g.parent_id AND c.parent_created_at = g.parent_created_at
                     AND c.state IS NULL AND c.position <@ g.positions ORDER BY c.position DESC LIMIT 1);
        IF child IS NULL OR {schema}.failed_of(g) IS NOT NULL THEN
            is_done := {schema}.end_group(g) AND is_done;
        ELSE
            PERFORM FROM {schema}.runs AS r WHERE r.run_id = child FOR KEY SHARE SKIP LOCKED;
            is_done := is_done AND FOUND;  -- whoever settles it will look
        END IF;
    END LOOP;
    RETURN is_done;
END $$;
