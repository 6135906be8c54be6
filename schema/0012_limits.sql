-- How many runs may be executed at once, and how many begin in a time: by kind, by project, for the fleet, and by
-- concurrency key. Who is claimed under a limit holds a *place* of it until it is running no longer; that there is one
-- holder a place is the primary key's doing. A run that no limit concerns and that has no key never comes here.

CREATE TABLE {schema}.limits (
    limit_id    integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text COLLATE "C" NOT NULL DEFAULT '',      -- empty: every kind
    project_id  text COLLATE "C" NOT NULL DEFAULT '',      -- empty: every project
    per         text COLLATE "C" NOT NULL DEFAULT 'all',   -- all of these together, each project, each concurrency key
    max_running integer,                                   -- null: any number
    rate        integer,                                   -- so many begin in per_s seconds; null: any number
    per_s       double precision NOT NULL DEFAULT 1,
    burst       integer NOT NULL DEFAULT 1,                -- so many at once after a time without any
    changed_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT limits_once UNIQUE (kind, project_id, per),
    CONSTRAINT kind_has_at_most_200_characters CHECK (char_length(kind) <= 200),
    CONSTRAINT project_id_has_at_most_200_characters CHECK (char_length(project_id) <= 200),
    CONSTRAINT per_is_all_project_or_key CHECK (per IN ('all', 'project', 'key')),
    -- A key is its project's, whatever the kinds of its runs are.
    CONSTRAINT per_key_is_of_every_kind CHECK (per <> 'key' OR kind = ''),
    CONSTRAINT per_project_is_of_every_project CHECK (per <> 'project' OR project_id = ''),
    CONSTRAINT max_running_is_between_0_and_100000 CHECK (max_running BETWEEN 0 AND 100000),
    CONSTRAINT max_running_of_a_key_is_between_1_and_1000 CHECK (per <> 'key' OR max_running BETWEEN 1 AND 1000),
    CONSTRAINT rate_is_between_1_and_1000000 CHECK (rate BETWEEN 1 AND 1000000),
    CONSTRAINT per_s_is_between_a_millisecond_and_31_days CHECK (per_s BETWEEN 0.001 AND 2678400),
    CONSTRAINT burst_is_between_1_and_1000000 CHECK (burst BETWEEN 1 AND 1000000),
    CONSTRAINT something_is_limited CHECK (max_running IS NOT NULL OR rate IS NOT NULL)
);

-- limit_id 0 is the concurrency key's own.
CREATE TABLE {schema}.places (
    limit_id    integer NOT NULL,
    project_id  text COLLATE "C" NOT NULL,  -- empty: of a limit that counts all together
    key         text COLLATE "C" NOT NULL,  -- empty but for keys
    place       integer NOT NULL,
    run_id      uuid    NOT NULL,
    lease_owner text COLLATE "C" NOT NULL,
    -- Its run was cancelled while it was executed: the place stays taken until the worker tells that the handler has ended.
    lingers     boolean NOT NULL DEFAULT false,
    -- Under which lease that handler runs: a run that is retried may be cancelled again meanwhile.
    lease_token bigint,
    CONSTRAINT lease_token_is_set_while_it_lingers CHECK (lingers = (lease_token IS NOT NULL)),
    CONSTRAINT places_pkey PRIMARY KEY (limit_id, project_id, key, place)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        vacuum_truncate = false);
CREATE INDEX places_run_id ON {schema}.places (run_id);

-- Rates, as virtual scheduling has it (GCRA, ITU-T I.371): a token bucket in one moment, that at which the bucket would be
-- full again.
CREATE TABLE {schema}.rates (
    limit_id   integer NOT NULL,
    project_id text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    full_at    timestamptz NOT NULL,
    CONSTRAINT rates_pkey PRIMARY KEY (limit_id, project_id, key)
);

-- How many tokens are there now, and when the next one will be.
CREATE FUNCTION {schema}.tokens(l {schema}.limits, project_id text, key text, OUT free integer, OUT due_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    each_s  float8 := l.per_s / l.rate;
    full_at timestamptz := (SELECT r.full_at FROM {schema}.rates AS r
                             WHERE r.limit_id = l.limit_id AND r.project_id = tokens.project_id AND r.key = tokens.key);
    late_s  float8 := greatest(0, date_part('epoch', full_at - clock_timestamp()));
BEGIN
    free := coalesce(floor(l.burst - late_s / each_s + 1e-6), l.burst);
    IF free <= 0 THEN
        due_at := full_at - (l.burst - 1) * each_s * interval '1 s';
    END IF;
END $$;

CREATE FUNCTION {schema}.spend(l {schema}.limits, project_id text, key text, tokens integer) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO {schema}.rates AS r (limit_id, project_id, key, full_at)
    VALUES (l.limit_id, spend.project_id, spend.key, clock_timestamp() + spend.tokens * (l.per_s / l.rate) * interval '1 s')
    ON CONFLICT ON CONSTRAINT rates_pkey
    DO UPDATE SET full_at = greatest(r.full_at, clock_timestamp()) + spend.tokens * (l.per_s / l.rate) * interval '1 s';
END $$;

-- How many more runs of a kind and project may be claimed now, by every limit but those of keys; null: any number. Where
-- it is for want of a token, when there will be one. `locked`: only by these; one that was made since this claim began is
-- nobody's yet, and adopt() counts what it takes.
CREATE FUNCTION {schema}.room(
    kind text, project_id text, locked integer[] DEFAULT NULL, OUT free integer, OUT due_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    l      {schema}.limits;
    whose  text;
    tokens record;
BEGIN
    FOR l IN SELECT * FROM {schema}.limits AS m
              WHERE m.per <> 'key' AND m.kind IN ('', room.kind) AND m.project_id IN ('', room.project_id)
                AND (room.locked IS NULL OR m.limit_id = ANY (room.locked))
    LOOP
        whose := CASE l.per WHEN 'project' THEN room.project_id ELSE '' END;
        IF l.max_running IS NOT NULL THEN
            free := least(free, greatest(0, l.max_running - (
                SELECT count(*) FROM {schema}.places AS p WHERE p.limit_id = l.limit_id AND p.project_id = whose)));
        END IF;
        IF l.rate IS NOT NULL THEN
            SELECT * INTO tokens FROM {schema}.tokens(l, whose, '');
            free := least(free, tokens.free);
            due_at := greatest(due_at, tokens.due_at);
        END IF;
    END LOOP;
END $$;

-- Take room for runs that are claimed in this transaction. Who claims has the limits' rows locked, so that what room()
-- said still holds.
CREATE FUNCTION {schema}.take_room(kind text, project_id text, locked integer[], run_ids uuid[], lease_owner text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = on AS $$
#variable_conflict use_column
DECLARE
    l     {schema}.limits;
    whose text;
BEGIN
    FOR l IN SELECT * FROM {schema}.limits AS m
              WHERE m.per <> 'key' AND m.kind IN ('', take_room.kind) AND m.project_id IN ('', take_room.project_id)
                AND m.limit_id = ANY (take_room.locked)
    LOOP
        whose := CASE l.per WHEN 'project' THEN take_room.project_id ELSE '' END;
        IF l.max_running IS NOT NULL THEN
            INSERT INTO {schema}.places (limit_id, project_id, key, place, run_id, lease_owner)
            SELECT l.limit_id, whose, '', free.place, taken.run_id, take_room.lease_owner
              FROM unnest(take_room.run_ids) WITH ORDINALITY AS taken (run_id, nr)
              JOIN (SELECT s.place, row_number() OVER (ORDER BY s.place) AS nr
                      -- So many numbers are enough to find as many free ones as are wanted.
                      FROM generate_series(0, least(l.max_running, cardinality(take_room.run_ids) + (
                          SELECT count(*) FROM {schema}.places AS p
                           WHERE p.limit_id = l.limit_id AND p.project_id = whose)) - 1) AS s (place)
                     WHERE NOT EXISTS (SELECT FROM {schema}.places AS p
                                        WHERE p.limit_id = l.limit_id AND p.project_id = whose AND p.key = ''
                                          AND p.place = s.place)) AS free USING (nr);
        END IF;
        IF l.rate IS NOT NULL THEN
            PERFORM {schema}.spend(l, whose, '', cardinality(take_room.run_ids));
        END IF;
    END LOOP;
END $$;

-- How many runs with the same key of this project may be executed at once.
CREATE FUNCTION {schema}.key_places(project_id text) RETURNS integer
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN coalesce((SELECT m.max_running FROM {schema}.limits AS m
                      WHERE m.per = 'key' AND m.project_id IN ('', key_places.project_id)
                      ORDER BY m.project_id DESC LIMIT 1), 1);
END $$;

-- Of a lane of runs with keys: lock up to `wanted` whose key is free, take the key, and return them. Those that are passed
-- by on the way, since their key is taken, wait for it from now on and are read no more until it is free.
--
-- Whoever frees a key deletes its place and then looks for who waits. So a run may begin to wait only under a share lock
-- on each of its key's places: then that DELETE comes after it, and sees it; or behind a run of the same lane and key that
-- is locked here and does not wait. What can't be locked is being freed now, and its runs stay as they are.
--
-- Nothing here waits for anybody: two claims may take the same keys by way of different kinds, each in its own order. So a
-- key is taken under an advisory lock that is had at once or not at all, and by a statement that sees what whoever had the
-- lock before has done. Of those locks there are 1024, however many keys there are.
CREATE FUNCTION {schema}.take_keys(
    kind text, project_id text, rank integer, wanted integer, lease_owner text, is_shadow boolean
) RETURNS uuid[] LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
-- Lists of a page are joined here, and our sessions know nothing but nested loops.
SET enable_hashjoin = on SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    places     integer := {schema}.key_places(take_keys.project_id);
    page       integer := least(1000, greatest(100, take_keys.wanted * 5 / 4));
    l          {schema}.limits;
    run_ids    uuid[];
    keys       text[];
    shadows    boolean[];
    open_keys  text[];        -- those of this page that are free, as far as was seen
    mine       text[];        -- of these, those that nobody else is taking now
    passed     text[] := '{}';  -- keys that another is taking or freeing now: not looked at again
    early      text[] := '{}';  -- keys that are free, but without a token
    found      uuid[];
    taken      uuid[] := '{}';
    waiting    uuid[];
    too_early  uuid[];
    stuck      text[];
    is_moved   boolean := false;
BEGIN
    SELECT * INTO l FROM {schema}.limits AS m
     WHERE m.per = 'key' AND m.project_id IN ('', take_keys.project_id) ORDER BY m.project_id DESC LIMIT 1;
    -- Arrays of a page are joined or subtracted as sets: `= ANY` compares each with each.
    FOR i IN 1 .. 10 LOOP
        SELECT array_agg(c.run_id), array_agg(c.concurrency_key), array_agg(c.is_shadow OR take_keys.is_shadow)
          INTO run_ids, keys, shadows
          FROM (SELECT r.run_id, r.concurrency_key, r.is_shadow
                  FROM {schema}.runs AS r
                 WHERE r.state = 'pending' AND r.waits_for IS NULL AND r.kind = take_keys.kind
                   AND r.project_id = take_keys.project_id AND {rank} = take_keys.rank AND r.run_at <= now()
                   AND r.run_id NOT IN (SELECT unnest(taken)) AND r.concurrency_key NOT IN (SELECT unnest(passed))
                 ORDER BY r.kind, r.project_id, {rank}, r.run_at, r.run_id
                 LIMIT page FOR UPDATE SKIP LOCKED) AS c;
        EXIT WHEN run_ids IS NULL;
        open_keys := array(
            SELECT w.key FROM (
                SELECT c.key, min(c.nr) AS nr FROM unnest(keys, shadows) WITH ORDINALITY AS c (key, is_shadow, nr)
                 WHERE NOT c.is_shadow AND c.key <> ALL (early) GROUP BY c.key) AS w
             WHERE places > (SELECT count(*) FROM {schema}.places AS p
                              WHERE p.limit_id = 0 AND p.project_id = take_keys.project_id AND p.key = w.key)
             ORDER BY w.nr);
        mine := array(
            SELECT w.key FROM unnest(open_keys[: take_keys.wanted]) AS w (key)
             WHERE pg_try_advisory_xact_lock({lock_class} + 1, (hashtextextended(
                 '{name} key ' || (hashtextextended(take_keys.project_id || ' ' || w.key, 0) & 1023)::text, 0) >> 32)::integer));
        WITH wish AS (
            SELECT c.*, row_number() OVER (PARTITION BY c.key, c.is_shadow ORDER BY c.nr) AS nth
              FROM unnest(run_ids, keys, shadows) WITH ORDINALITY AS c (run_id, key, is_shadow, nr)
        ), held_now AS MATERIALIZED (
            -- By a look-up a key: while statistics say that there are no places, all of the project's may be read instead.
            SELECT w.key, p.place
              FROM unnest(mine) AS w (key), LATERAL (
                  SELECT p.place FROM {schema}.places AS p
                   WHERE p.limit_id = 0 AND p.project_id = take_keys.project_id AND p.key = w.key OFFSET 0) AS p
        ), wanted_of AS MATERIALIZED (
            -- Some places may have higher numbers, from when there were more: of those that are free, so many are to be had.
            SELECT w.key, w.wishes + coalesce(h.held, 0) AS numbers, places - coalesce(h.held, 0) AS free
              FROM (SELECT key, count(*) AS wishes FROM unnest(mine) AS m (key) JOIN wish USING (key)
                     WHERE NOT wish.is_shadow GROUP BY key) AS w
              LEFT JOIN (SELECT key, count(*) AS held FROM held_now GROUP BY key) AS h ON h.key = w.key
        ), free AS MATERIALIZED (
            SELECT * FROM (
                SELECT w.key, w.free, s.place, row_number() OVER (PARTITION BY w.key ORDER BY s.place) AS nth
                  FROM wanted_of AS w CROSS JOIN LATERAL generate_series(0, least(places, w.numbers) - 1) AS s (place)
                  LEFT JOIN held_now AS h ON h.key = w.key AND h.place = s.place
                 WHERE h.key IS NULL) AS f
             WHERE f.nth <= f.free
        ), tokens AS MATERIALIZED (
            SELECT w.key, t.free, t.due_at
              FROM (SELECT DISTINCT key FROM free) AS w, {schema}.tokens(l, take_keys.project_id, w.key) AS t
             WHERE l.rate IS NOT NULL
        ), choice AS (
            SELECT w.run_id, w.key, w.is_shadow, w.nr, f.place, coalesce(w.nth > t.free, false) AS is_early
              FROM wish AS w LEFT JOIN free AS f ON f.key = w.key AND f.nth = w.nth AND NOT w.is_shadow
              LEFT JOIN tokens AS t ON t.key = w.key AND NOT w.is_shadow
        ), chosen AS (
            SELECT * FROM choice WHERE is_shadow OR (place IS NOT NULL AND NOT is_early) ORDER BY nr LIMIT take_keys.wanted
        ), held AS (
            INSERT INTO {schema}.places (limit_id, project_id, key, place, run_id, lease_owner)
            SELECT 0, take_keys.project_id, key, place, run_id, take_keys.lease_owner FROM chosen WHERE NOT is_shadow
        )
        SELECT array(SELECT run_id FROM chosen ORDER BY nr),
               array(SELECT run_id FROM choice WHERE NOT is_shadow AND place IS NULL),
               array(SELECT run_id FROM choice WHERE place IS NOT NULL AND is_early),
               early || array(SELECT DISTINCT key FROM choice WHERE place IS NOT NULL AND is_early)
          INTO found, waiting, too_early, early;
        taken := taken || found;
        take_keys.wanted := take_keys.wanted - cardinality(found);
        IF take_keys.is_shadow THEN  -- who is executed without a key leaves its turn to the next
            PERFORM {schema}.end_wait(take_keys.project_id, w.key, 1)
               FROM (SELECT DISTINCT c.key FROM unnest(run_ids, keys) AS c (run_id, key) WHERE c.run_id = ANY (found)) AS w;
        END IF;
        IF l.rate IS NOT NULL THEN
            PERFORM {schema}.spend(l, take_keys.project_id, spent.key, spent.tokens)
               FROM (SELECT c.key, count(*)::integer AS tokens
                       FROM unnest(run_ids, keys, shadows) AS c (run_id, key, is_shadow)
                      WHERE c.run_id = ANY (found) AND NOT c.is_shadow GROUP BY c.key ORDER BY c.key) AS spent;
            -- Not before there is a token for it; whoever comes first then has it.
            UPDATE {schema}.runs AS r
               SET run_at = greatest(r.run_at, ({schema}.tokens(l, take_keys.project_id, r.concurrency_key)).due_at)
             WHERE r.run_id = ANY (too_early);
        END IF;
        stuck := '{}';
        IF cardinality(waiting) > 0 THEN
            WITH passed_by AS MATERIALIZED (
                SELECT DISTINCT c.key FROM unnest(waiting) AS w (run_id) JOIN unnest(run_ids, keys) AS c (run_id, key) USING (run_id)
            ), locked AS MATERIALIZED (
                SELECT p.key FROM {schema}.places AS p
                 WHERE p.limit_id = 0 AND p.project_id = take_keys.project_id AND p.key = ANY (array(SELECT key FROM passed_by))
                   FOR SHARE SKIP LOCKED
            ), full_keys AS MATERIALIZED (
                SELECT key FROM locked GROUP BY key HAVING count(*) >= places UNION SELECT unnest(early)
            ), wait AS (
                UPDATE {schema}.runs AS r SET waits_for = 'key'
                 WHERE r.run_id = ANY (waiting) AND r.concurrency_key IN (SELECT key FROM full_keys)
                RETURNING 1
            )
            SELECT array(SELECT key FROM passed_by WHERE key NOT IN (SELECT key FROM full_keys)),
                   is_moved OR EXISTS (SELECT FROM wait)
              INTO stuck, is_moved;
        END IF;
        is_moved := is_moved OR cardinality(too_early) > 0;
        -- Free, but beyond what was wanted: if there is still a wish for it, it is looked at again.
        passed := passed || array(SELECT key FROM unnest(stuck) AS key WHERE key <> ALL (open_keys) OR key = ANY (mine))
                         || array(SELECT unnest(open_keys[: take_keys.wanted + cardinality(found)]) EXCEPT SELECT unnest(mine));
        EXIT WHEN take_keys.wanted <= 0 OR cardinality(run_ids) < page;
        -- What waits now made room for more to be read; but no claim lasts for ever.
        IF i = 10 AND is_moved AND pg_notification_queue_usage() < 0.5 THEN
            PERFORM pg_notify('{name}', 'free:' || pg_current_xact_id()::text);
        END IF;
    END LOOP;
    RETURN taken;
END $$;

-- Count those that were running before a limit was made or was known to their claim.
CREATE FUNCTION {schema}.adopt(l {schema}.limits) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = on AS $$
#variable_conflict use_column
BEGIN
    WITH strays AS MATERIALIZED (
        SELECT r.run_id, r.lease_owner, CASE l.per WHEN 'project' THEN r.project_id ELSE '' END AS whose
          FROM {schema}.runs AS r
         WHERE r.lease_expires_at IS NOT NULL AND NOT r.is_shadow AND l.max_running IS NOT NULL AND l.per <> 'key'
           AND l.kind IN ('', r.kind) AND l.project_id IN ('', r.project_id)
           AND NOT EXISTS (SELECT FROM {schema}.places AS p WHERE p.run_id = r.run_id AND p.limit_id = l.limit_id)
           FOR UPDATE OF r SKIP LOCKED
    ), counted AS (
        INSERT INTO {schema}.places (limit_id, project_id, key, place, run_id, lease_owner)
        -- Above every place that a claim gives.
        SELECT l.limit_id, whose, '', 1000000 + row_number() OVER (PARTITION BY whose) + coalesce((
                   SELECT max(p.place) FROM {schema}.places AS p WHERE p.limit_id = l.limit_id AND p.place >= 1000000), 0) % 1000000,
               run_id, lease_owner
          FROM strays
    )
    UPDATE {schema}.runs SET is_limited = true WHERE run_id = ANY (array(SELECT run_id FROM strays));
END $$;

-- pending -> running where limits or keys count; beside claim.sql, whose order of arguments and result it has. First the
-- limits' rows are locked, each claim in the same order; only then is anything counted, by statements that see what
-- whoever had the lock before has done.
CREATE FUNCTION {schema}.claim_limited(
    kinds text[], project_ids text[], ranks integer[], marks timestamptz[], served text[], attempts smallint[],
    timeouts_s float8[], wanted integer, lease_owner text, lease_s float8, is_shadow boolean, mosts bigint[],
    version text DEFAULT NULL
) RETURNS TABLE (
    run_id uuid, lease_token bigint, kind text, project_id text, priority smallint, due_at_s float8, payload jsonb,
    headers jsonb, attempt smallint, max_attempts smallint, was_shadow boolean, timeout_s float8, expired boolean,
    waited_s float8
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    l      {schema}.limits;
    lane   record;
    locked integer[] := '{}';
    free   integer;
    taken  uuid[];
BEGIN
    FOR l IN
        SELECT * FROM {schema}.limits AS m
         WHERE (m.per <> 'key' OR m.rate IS NOT NULL)
           AND EXISTS (SELECT FROM unnest(claim_limited.kinds, claim_limited.project_ids) AS a (kind, project_id)
                        WHERE m.kind IN ('', a.kind) AND m.project_id IN ('', a.project_id))
         ORDER BY m.limit_id FOR UPDATE
    LOOP
        locked := locked || l.limit_id;
        -- A claim that began before the limit was there may end now.
        IF l.changed_at > now() - interval '60 s' THEN
            PERFORM {schema}.adopt(l);
        END IF;
    END LOOP;
    FOR lane IN
        SELECT * FROM unnest(claim_limited.kinds, claim_limited.project_ids, claim_limited.ranks, claim_limited.marks,
                             claim_limited.mosts) WITH ORDINALITY AS a (kind, project_id, rank, mark, most, nr)
         WHERE NOT EXISTS (
            SELECT FROM {schema}.pauses AS p
             WHERE p.kind IN ('', a.kind) AND p.project_id IN ('', a.project_id) AND (p.until IS NULL OR p.until > now()))
           AND {schema}.live_version(a.kind, a.project_id) IS NOT DISTINCT FROM claim_limited.version
         ORDER BY a.nr
    LOOP
        free := least(claim_limited.wanted, lane.most, ({schema}.room(lane.kind, lane.project_id, locked)).free);
        CONTINUE WHEN free <= 0;
        IF lane.rank & 1 = 1 THEN
            taken := {schema}.take_keys(
                lane.kind, lane.project_id, lane.rank, free, claim_limited.lease_owner, claim_limited.is_shadow);
        ELSE
            taken := array(
                SELECT c.run_id
                  FROM (SELECT r.run_id
                          FROM {schema}.runs AS r
                         WHERE r.state = 'pending' AND r.waits_for IS NULL AND r.kind = lane.kind
                           AND r.project_id = lane.project_id AND {rank} = lane.rank
                           AND r.run_at >= lane.mark AND r.run_at <= now()
                         ORDER BY r.kind, r.project_id, {rank}, r.run_at, r.run_id
                         LIMIT free FOR UPDATE SKIP LOCKED) AS c);
        END IF;
        CONTINUE WHEN cardinality(taken) = 0;
        RETURN QUERY
            UPDATE {schema}.runs AS r
               SET state = 'running', attempt = r.attempt + 1, lease_token = r.lease_token + 1,
                   lease_owner = claim_limited.lease_owner,
                   lease_expires_at = now() + claim_limited.lease_s * interval '1 s', started_at = now(),
                   max_attempts = coalesce(r.max_attempts, claim_limited.attempts[array_position(claim_limited.served, r.kind)]),
                   timeout = coalesce(
                       r.timeout, claim_limited.timeouts_s[array_position(claim_limited.served, r.kind)] * interval '1 s'),
                   is_shadow = r.is_shadow OR claim_limited.is_shadow,
                   is_limited = NOT (r.is_shadow OR claim_limited.is_shadow),
                   shadow_by = CASE WHEN r.is_shadow THEN 'run' WHEN claim_limited.is_shadow THEN 'worker' END
             WHERE r.run_id = ANY (taken)
            RETURNING r.run_id, r.lease_token, r.kind, r.project_id, r.priority, date_part('epoch', r.run_at), r.payload,
                r.headers, r.attempt, r.max_attempts, r.is_shadow, date_part('epoch', r.timeout), r.expires_at <= now(),
                date_part('epoch', now() - greatest(r.run_at, r.created_at));
        -- What has no effect takes no room either.
        PERFORM {schema}.take_room(lane.kind, lane.project_id, locked, array(
            SELECT r.run_id FROM {schema}.runs AS r WHERE r.run_id = ANY (taken) AND r.is_limited), claim_limited.lease_owner);
        claim_limited.wanted := claim_limited.wanted - cardinality(taken);
        EXIT WHEN claim_limited.wanted <= 0;
    END LOOP;
END $$;

-- Places are free again: the first who waits for each key gets its turn, and somebody is woken to see. Always by NOTIFY,
-- since what becomes ready so lies anywhere, and only who has limits pays for it. Once a statement, which may have settled
-- hundreds of runs: a key that nobody waits for costs a look-up.
CREATE FUNCTION {schema}.places_freed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    IF NOT EXISTS (SELECT FROM freed) THEN
        RETURN NULL;
    END IF;
    PERFORM {schema}.end_wait(f.project_id, f.key, f.number)
       FROM (SELECT project_id, key, count(*)::integer AS number FROM freed WHERE limit_id = 0
              GROUP BY project_id, key ORDER BY project_id, key) AS f
      WHERE EXISTS (SELECT FROM {schema}.runs AS r
                     WHERE r.waits_for = 'key' AND r.project_id = f.project_id AND r.concurrency_key = f.key);
    IF pg_notification_queue_usage() < 0.5 THEN  -- one message a transaction, the same as end_wait's
        PERFORM pg_notify('{name}', 'free:' || pg_current_xact_id()::text);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER places_freed AFTER DELETE ON {schema}.places
    REFERENCING OLD TABLE AS freed FOR EACH STATEMENT EXECUTE FUNCTION {schema}.places_freed();

-- Let so many of those who wait for a key be claimed: of each kind, since one that is paused, limited or served by nobody
-- must not keep its turn from the others. Who comes too late waits again. Tells how many there were.
CREATE FUNCTION {schema}.end_wait(project_id text, key text, number integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    ended integer;
BEGIN
    UPDATE {schema}.runs AS r SET waits_for = NULL
     WHERE r.run_id = ANY (array(
        WITH RECURSIVE k AS (
            (SELECT r.kind FROM {schema}.runs AS r
              WHERE r.waits_for = 'key' AND r.project_id = end_wait.project_id AND r.concurrency_key = end_wait.key
              ORDER BY r.project_id, r.concurrency_key, r.kind LIMIT 1)
            UNION ALL
            SELECT next.kind FROM k, LATERAL (
                SELECT r.kind FROM {schema}.runs AS r
                 WHERE r.waits_for = 'key' AND r.project_id = end_wait.project_id AND r.concurrency_key = end_wait.key
                   AND r.kind > k.kind
                 ORDER BY r.project_id, r.concurrency_key, r.kind LIMIT 1) AS next
        )
        SELECT w.run_id FROM k, LATERAL (
            SELECT r.run_id FROM {schema}.runs AS r
             WHERE r.waits_for = 'key' AND r.project_id = end_wait.project_id AND r.concurrency_key = end_wait.key
               AND r.kind = k.kind
             ORDER BY r.project_id, r.concurrency_key, r.kind, -r.priority::int, r.run_at, r.run_id
             LIMIT end_wait.number FOR UPDATE SKIP LOCKED) AS w));
    GET DIAGNOSTICS ended = ROW_COUNT;
    -- One message a transaction, and another each time: it says who is to look first (notifyworker/turns.py).
    IF ended > 0 AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', 'free:' || pg_current_xact_id()::text);
    END IF;
    RETURN ended;
END $$;

-- The net, cast by the leader at each pass: places of cancelled runs whose worker is gone, places without a run, runs that
-- wait for a key that is free. Returns how many places there were to mend: a key that has just become free, and whose next
-- run is not claimed yet, looks here like one that was forgotten, and one more that is let go waits again.
CREATE FUNCTION {schema}.mend_limits() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    mended  integer;
    ended   integer := 0;
    waiting record;
BEGIN
    DELETE FROM {schema}.places AS p
     WHERE p.ctid = ANY (array(
        SELECT p.ctid FROM {schema}.places AS p
         WHERE CASE WHEN p.lingers THEN NOT EXISTS (SELECT FROM {schema}.workers AS w WHERE w.lease_owner = p.lease_owner)
                    ELSE NOT EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = p.run_id AND r.state = 'running') END
           FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS mended = ROW_COUNT;
    FOR waiting IN
        WITH RECURSIVE w AS (
            (SELECT r.project_id, r.concurrency_key AS key FROM {schema}.runs AS r WHERE r.waits_for = 'key'
              ORDER BY r.project_id, r.concurrency_key LIMIT 1)
            UNION ALL
            SELECT next.* FROM w, LATERAL (
                SELECT r.project_id, r.concurrency_key FROM {schema}.runs AS r
                 WHERE r.waits_for = 'key' AND (r.project_id, r.concurrency_key) > (w.project_id, w.key)
                 ORDER BY r.project_id, r.concurrency_key LIMIT 1) AS next
        )
        SELECT w.*, {schema}.key_places(w.project_id) - (
                   SELECT count(*)::integer FROM {schema}.places AS p
                    WHERE p.limit_id = 0 AND p.project_id = w.project_id AND p.key = w.key) AS free
          FROM w
    LOOP
        IF waiting.free > 0 THEN
            ended := ended + {schema}.end_wait(waiting.project_id, waiting.key, waiting.free);
        END IF;
    END LOOP;
    -- A bucket that is full says nothing.
    DELETE FROM {schema}.rates AS r
     WHERE r.ctid = ANY (array(
        SELECT r.ctid FROM {schema}.rates AS r
         WHERE r.full_at < clock_timestamp() AND NOT EXISTS (
                   SELECT FROM {schema}.limits AS l WHERE l.limit_id = r.limit_id AND l.changed_at > now() - interval '60 s')
           FOR UPDATE SKIP LOCKED));
    IF mended + ended > 0 AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', '');
    END IF;
    RETURN mended;
END $$;

-- A cancelled run's handler has ended: its places are free.
CREATE FUNCTION {schema}.end_lingering(run_id uuid, lease_owner text, lease_token bigint) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
BEGIN ATOMIC
    DELETE FROM {schema}.places AS p
     WHERE p.run_id = end_lingering.run_id AND p.lease_owner = end_lingering.lease_owner
       AND p.lingers AND p.lease_token = end_lingering.lease_token;
END;

-- Make a limit, or change it to exactly this. Null means every kind, every project. Runs that are executed go on, and count.
CREATE FUNCTION {schema}.set_limit(
    kind text DEFAULT NULL, project_id text DEFAULT NULL, per text DEFAULT 'all', max_running integer DEFAULT NULL,
    rate integer DEFAULT NULL, per_s float8 DEFAULT 1, burst integer DEFAULT NULL
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    l {schema}.limits;
BEGIN
    IF NOT {schema}.caller_sees(coalesce(set_limit.project_id, '')) THEN
        RAISE EXCEPTION 'this role may not limit %', coalesce('the project "' || set_limit.project_id || '"', 'every project')
            USING ERRCODE = 'insufficient_privilege', HINT = 'The owner of the schema binds roles by bind_role().';
    END IF;
    INSERT INTO {schema}.limits AS l (kind, project_id, per, max_running, rate, per_s, burst)
    VALUES (coalesce(set_limit.kind, ''), coalesce(set_limit.project_id, ''), set_limit.per, set_limit.max_running,
        set_limit.rate, set_limit.per_s,
        -- Unless said otherwise, a second's worth at once.
        coalesce(set_limit.burst, CASE WHEN set_limit.rate IS NOT NULL AND set_limit.per_s > 0
            THEN greatest(1, least(1000000, floor(set_limit.rate / set_limit.per_s))) END::integer, 1))
    ON CONFLICT ON CONSTRAINT limits_once DO UPDATE
       SET max_running = excluded.max_running, rate = excluded.rate, per_s = excluded.per_s, burst = excluded.burst,
           changed_at = now()
    RETURNING * INTO l;
    PERFORM {schema}.adopt(l);
    DELETE FROM {schema}.rates AS r WHERE r.limit_id = l.limit_id;
    PERFORM {schema}.mend_limits();
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', '');
    END IF;
END $$;

-- End exactly this limit; false if there was none.
CREATE FUNCTION {schema}.remove_limit(kind text DEFAULT NULL, project_id text DEFAULT NULL, per text DEFAULT 'all')
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    ended integer;
BEGIN
    IF NOT {schema}.caller_sees(coalesce(remove_limit.project_id, '')) THEN
        RAISE EXCEPTION 'this role may not change limits of %',
            coalesce('the project "' || remove_limit.project_id || '"', 'every project')
            USING ERRCODE = 'insufficient_privilege', HINT = 'The owner of the schema binds roles by bind_role().';
    END IF;
    DELETE FROM {schema}.limits AS l
     WHERE l.kind = coalesce(remove_limit.kind, '') AND l.project_id = coalesce(remove_limit.project_id, '')
       AND l.per = remove_limit.per
    RETURNING l.limit_id INTO ended;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- Its places go with their runs: to delete them here would wait for settles, and they for this transaction's end.
    DELETE FROM {schema}.rates AS r WHERE r.limit_id = ended;
    PERFORM {schema}.mend_limits();
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', '');
    END IF;
    RETURN true;
END $$;
