-- What a run's handler has done once and does not do again (run.step). A row is written while its worker holds the lease,
-- and read by whoever holds the next one. Nothing moves when the run is settled: a run without steps pays nothing.

CREATE TABLE {schema}.steps (
    run_id         uuid        NOT NULL,
    run_created_at timestamptz NOT NULL,  -- the id of a settled run may be used again: both together are one run
    started_at     timestamptz NOT NULL,
    finished_at    timestamptz NOT NULL,
    lease_token    bigint      NOT NULL,  -- under which it was recorded
    position       smallint    NOT NULL,  -- 1 is the first that the handler called
    attempt        smallint    NOT NULL,
    is_shadow      boolean     NOT NULL,  -- had no effect, and so stands for nothing once the run is executed in earnest
    project_id     text COLLATE "C" NOT NULL,
    name           text COLLATE "C" NOT NULL,
    error          text,                  -- it raised: it is shown, and executed again
    result         json,                  -- not jsonb, which changes numbers: a step returns the same each time

    CONSTRAINT steps_pkey PRIMARY KEY (run_id, run_created_at, position),
    CONSTRAINT position_is_between_1_and_1000 CHECK (position BETWEEN 1 AND 1000),
    CONSTRAINT name_has_1_to_200_characters CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT result_is_set_where_none_was_raised CHECK (error IS NULL OR result IS NULL)
);

-- For retention: what is older than it, and belongs to no run any more.
CREATE INDEX steps_finished_at ON {schema}.steps (finished_at);
