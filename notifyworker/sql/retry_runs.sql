-- settled -> pending, one batch. $1 kind, $2 project_id, $3 state, $4 and $5 finished between (null: any), $6 error_code,
-- $7 error as failed_groups shows it, $8 behind this run_id, $9 at most so many
SELECT done, skipped, last
  FROM {schema}.retry_runs(kind => $1, project_id => $2, state => coalesce($3, 'failed'), finished_after => $4,
      finished_before => $5, error_code => $6, error => $7, behind => $8, max_runs => $9)
