-- Runs that are inserted by the clock. The leader fires them: it moves next_at on and inserts the run in one statement that
-- names the next_at it has seen, so that no tick is fired twice, however many believe that they lead.

CREATE TABLE {schema}.schedules (
    name         text COLLATE "C" NOT NULL,
    cron         text        NOT NULL,
    timezone     text        NOT NULL DEFAULT 'UTC',
    kind         text COLLATE "C" NOT NULL,
    payload      jsonb       NOT NULL DEFAULT '{}',
    project_id   text COLLATE "C" NOT NULL DEFAULT 'default',
    priority     smallint    NOT NULL DEFAULT 0,
    max_attempts smallint,
    timeout      interval,
    headers      jsonb       NOT NULL DEFAULT '{}',
    paused       boolean     NOT NULL DEFAULT false,
    missed       text COLLATE "C" NOT NULL DEFAULT 'skip',
    -- What the leader keeps. next_at is null until it has seen the schedule; error is what keeps it from firing.
    next_at      timestamptz,
    last_tick_at timestamptz,
    error        text,
    changed_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT schedules_pkey PRIMARY KEY (name),
    CONSTRAINT name_has_1_to_200_characters CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT cron_has_1_to_500_characters CHECK (char_length(cron) BETWEEN 1 AND 500),
    CONSTRAINT kind_has_1_to_200_characters CHECK (char_length(kind) BETWEEN 1 AND 200),
    CONSTRAINT project_id_has_1_to_200_characters CHECK (char_length(project_id) BETWEEN 1 AND 200),
    CONSTRAINT max_attempts_is_at_least_1 CHECK (max_attempts >= 1),
    CONSTRAINT timeout_is_above_0_and_at_most_365_days CHECK (timeout > '0' AND timeout <= '365 days'),
    CONSTRAINT headers_is_an_object CHECK (jsonb_typeof(headers) = 'object'),
    CONSTRAINT missed_is_skip_once_or_all CHECK (missed IN ('skip', 'once', 'all')),
    CONSTRAINT next_at_is_after_last_tick_at CHECK (next_at > last_tick_at)
);
CREATE INDEX schedules_next_at ON {schema}.schedules (next_at) WHERE NOT paused AND error IS NULL;

CREATE FUNCTION {schema}.schedule_changes() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM now() AT TIME ZONE NEW.timezone;  -- refuses one that there is not
    NEW.error := NULL;
    NEW.changed_at := clock_timestamp();
    -- Other columns change nothing about when it is due, and a tick that is due at this moment must not be lost.
    IF TG_OP = 'INSERT' OR (NEW.cron, NEW.timezone, NEW.paused) IS DISTINCT FROM (OLD.cron, OLD.timezone, OLD.paused) THEN
        NEW.next_at := NULL;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER schedule_changes BEFORE INSERT OR UPDATE OF cron, timezone, kind, payload, project_id, priority, max_attempts,
    timeout, headers, paused, missed ON {schema}.schedules FOR EACH ROW EXECUTE FUNCTION {schema}.schedule_changes();

CREATE FUNCTION {schema}.tell_schedules() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{name}', 'schedules:');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tell_schedules AFTER INSERT OR DELETE OR UPDATE OF cron, timezone, kind, payload, project_id, priority,
    max_attempts, timeout, headers, paused, missed ON {schema}.schedules FOR EACH STATEMENT
    EXECUTE FUNCTION {schema}.tell_schedules();
