-- Wake a worker when a row is inserted, without making every commit of the whole server queue up for it.
--
-- A transaction that NOTIFYs holds a lock, global to the server, across its commit. So an insert notifies only when
-- somebody needs to be woken. Three advisory locks decide (notifyworker/leader.py holds them):
--   S  {leader_lock}  leadership
--   C  {coalesced_lock}  held by a leader that looks at the table by itself, every few milliseconds
--   M  {silent_lock}  marks the inserts that stayed silent: shared, until their transaction ends
-- An insert stays silent only if it got M and could not get C. M comes first: while the leader is armed it holds M, so
-- that a producer's open transaction holds neither. With no leader both are free, and every insert notifies: each
-- failure falls on the side of waking. Locks are no part of a snapshot, so this holds at any isolation level.


-- A wake-up says how far back it lies: 'at:' and the beginning of its transaction, which is what `run_at` is by default.
-- Who reads the table from a mark on goes back so far, once.
CREATE FUNCTION {schema}.wake() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A full notification queue would fail the producer's COMMIT. Above one half the leader looks by itself.
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', 'at:' || extract(epoch FROM now()));
    END IF;
    RETURN NULL;
END $$;

-- `SET LOCAL notifyworker.quiet = on` is for producers with two-phase commit: a transaction that has notified can't be
-- prepared. Their runs are found by the fallback poll.
-- Who inserts a second and more after BEGIN always notifies: such a run lies below the marks. (Who inserts at once and
-- commits late holds M meanwhile, which a leader that coalesces sees.)
CREATE TRIGGER wake AFTER INSERT ON {schema}.runs FOR EACH STATEMENT WHEN (
    CASE WHEN current_setting('notifyworker.quiet', true) = 'on' THEN false
         WHEN clock_timestamp() - now() > interval '1 s' THEN true
         WHEN NOT pg_try_advisory_xact_lock_shared({lock_class}, {silent_lock}) THEN true
         ELSE pg_try_advisory_xact_lock_shared({lock_class}, {coalesced_lock}) END)
EXECUTE FUNCTION {schema}.wake();

-- The same for rows that become ready in another way: a retry, a reap, a release. `oldest` is the least `run_at` of
-- them: what goes back to an old place lies below the marks, and always notifies. Tells whether it notified.
CREATE FUNCTION {schema}.announce(oldest timestamptz) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (CASE WHEN oldest < now() - interval '1 s' THEN true
             WHEN NOT pg_try_advisory_xact_lock_shared({lock_class}, {silent_lock}) THEN true
             ELSE pg_try_advisory_xact_lock_shared({lock_class}, {coalesced_lock}) END)
       AND pg_notification_queue_usage() < 0.5
    THEN
        PERFORM pg_notify('{name}', 'at:' || extract(epoch FROM least(oldest, now())));
        RETURN true;
    END IF;
    RETURN false;
END $$;
