-- pending or running -> cancelled, one batch. $1 kind, $2 project_id, $3 state, $4 and $5 created between (null: any),
-- $6 behind this run_id, $7 at most so many
SELECT done, skipped, last
  FROM {schema}.cancel_runs(kind => $1, project_id => $2, state => $3, created_after => $4, created_before => $5,
      behind => $6, max_runs => $7)
