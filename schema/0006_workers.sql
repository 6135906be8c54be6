-- Who works here, who leads, and what the reaper did. Nothing of this decides who owns a run: the lease does.

CREATE TABLE {schema}.workers (
    lease_owner          text COLLATE "C" NOT NULL PRIMARY KEY,  -- unique to one start of one worker
    host                 text        NOT NULL,
    pid                  integer     NOT NULL,
    version              text        NOT NULL,
    kinds                text[]      NOT NULL,
    project_ids          text[],                                 -- null: all
    versions             text[]      NOT NULL DEFAULT '{}',      -- named versions of its handlers, as kind@version
    concurrency          integer     NOT NULL,
    running              integer     NOT NULL,
    state                text        NOT NULL,
    shadow               text        NOT NULL,
    -- Whether its heartbeat session holds the advisory lock that shows it is alive; behind a pooler it can't.
    presence             boolean     NOT NULL,
    presumed_dead_s      double precision NOT NULL,
    lease_s              double precision NOT NULL,
    heartbeat_interval_s double precision NOT NULL,
    started_at           timestamptz NOT NULL DEFAULT now(),
    heartbeat_at         timestamptz NOT NULL DEFAULT now(),
    drain_asked          boolean     NOT NULL DEFAULT false,     -- it reads this with each heartbeat, and claims nothing while it is set
    CONSTRAINT state_is_running_or_draining CHECK (state IN ('running', 'draining'))
);

-- Ask a worker to claim nothing more and to finish what it runs; `undo`: to go on. False if there is no such worker. It holds
-- until that worker ends: the next start is another worker.
CREATE FUNCTION {schema}.drain(lease_owner text, undo boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF NOT {schema}.caller_sees('') THEN
        RAISE EXCEPTION 'this role may not drain a worker, which serves every project' USING ERRCODE = 'insufficient_privilege',
            HINT = 'The owner of the schema binds roles by bind_role().';
    END IF;
    UPDATE {schema}.workers AS w SET drain_asked = NOT drain.undo WHERE w.lease_owner = drain.lease_owner;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF pg_notification_queue_usage() < 0.5 THEN  -- it would see it with its next heartbeat anyhow
        PERFORM pg_notify('{name}', 'drain:' || drain.lease_owner);
    END IF;
    RETURN true;
END $$;

-- One row: the leader and its passes.
CREATE TABLE {schema}.reaper (
    only_row      boolean     NOT NULL PRIMARY KEY DEFAULT true CHECK (only_row),
    leader        text,
    mode          text,
    elected_at    timestamptz,
    last_pass_at  timestamptz,
    next_pass_at  timestamptz,
    passes        bigint      NOT NULL DEFAULT 0,
    reaped_total  bigint      NOT NULL DEFAULT 0,
    failed_total  bigint      NOT NULL DEFAULT 0
);
INSERT INTO {schema}.reaper DEFAULT VALUES;

-- Each run that was taken from a worker, and why. Its own history, trimmed by the leader.
CREATE TABLE {schema}.reaps (
    reap_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now(),
    run_id      uuid        NOT NULL,
    kind        text        NOT NULL,
    project_id  text        NOT NULL,
    attempt     smallint    NOT NULL,
    taken_from  text        NOT NULL,
    taken_by    text        NOT NULL,
    reason      text        NOT NULL CHECK (reason IN ('lease_expired', 'presumed_dead')),
    became      text        NOT NULL CHECK (became IN ('pending', 'failed'))
);
