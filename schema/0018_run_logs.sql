-- What handlers have written to run.log: a row a lease, which its worker replaces as a whole, with its heartbeats and at the
-- end. So a write that is repeated, or comes late, changes nothing; and a run that logs nothing pays nothing.

CREATE TABLE {schema}.run_logs (
    run_id         uuid        NOT NULL,
    run_created_at timestamptz NOT NULL,  -- as in steps
    written_at     timestamptz NOT NULL DEFAULT now(),
    lease_token    bigint      NOT NULL,
    line_count     integer     NOT NULL,
    cut            integer     NOT NULL,  -- lines before these that are not kept
    attempt        smallint    NOT NULL,
    is_whole       boolean     NOT NULL,  -- written after the handler's end; else what came after it may be lost
    project_id     text COLLATE "C" NOT NULL,
    lines          json        NOT NULL,

    CONSTRAINT run_logs_pkey PRIMARY KEY (run_id, run_created_at, lease_token),
    CONSTRAINT lines_are_counted CHECK (line_count >= 1 AND cut >= 0)
);

-- For retention: what is older than it, and belongs to no run any more.
CREATE INDEX run_logs_written_at ON {schema}.run_logs (written_at);
