-- $1 kind, $2 project_id, $3 error_code, $4 and $5 finished between (null: any), $6 of the newest so many
SELECT kind, error_code, error, runs, first_at, last_at, run_id
  FROM {schema}.failed_groups(kind => $1, project_id => $2, error_code => $3, finished_after => $4, finished_before => $5,
      newest => $6)
