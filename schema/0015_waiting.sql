-- Who waits for which run's end. A settle that nobody waits for pays one look into an empty table; the others notify each
-- waiter on a channel of its own, so that nobody else is woken. A notification may be lost: waiters look now and then.
--
-- Not logged: a waiter commits without waiting for the disk. After a crash of the server it has to connect again, and
-- says again what it waits for.
CREATE UNLOGGED TABLE {schema}.waiters (
    run_id     uuid NOT NULL,
    channel    text COLLATE "C" NOT NULL,
    expires_at timestamptz NOT NULL,  -- put off while its waiter lives
    CONSTRAINT waiters_pkey PRIMARY KEY (run_id, channel),
    CONSTRAINT channel_is_of_a_waiter CHECK (channel ~ '^{name}_wait_[0-9a-f]{16}$')
);
CREATE INDEX waiters_expires_at ON {schema}.waiters (expires_at);

-- From now on, for a minute, tell this channel when one of these runs is settled. Whoever has called looks at them
-- afterwards: those that are settled are not waited for.
CREATE FUNCTION {schema}.expect(run_ids uuid[], channel text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO {schema}.waiters AS w (run_id, channel, expires_at)
    SELECT r.run_id, expect.channel, now() + interval '1 minute'
      FROM {schema}.runs AS r WHERE r.run_id = ANY (expect.run_ids) AND {schema}.caller_sees(r.project_id)
    ON CONFLICT ON CONSTRAINT waiters_pkey DO UPDATE SET expires_at = excluded.expires_at;
END $$;

CREATE FUNCTION {schema}.expect_no_more(run_ids uuid[], channel text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM {schema}.waiters AS w WHERE w.run_id = ANY (expect_no_more.run_ids) AND w.channel = expect_no_more.channel;
END $$;

-- Called by whatever settles runs, in its own transaction, where anybody waits at all. It only reads: a settle never
-- waits for a waiter.
CREATE FUNCTION {schema}.tell_waiters(run_ids uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify(w.channel, w.run_id::text) FROM {schema}.waiters AS w WHERE w.run_id = ANY (tell_waiters.run_ids);
    END IF;
END $$;
