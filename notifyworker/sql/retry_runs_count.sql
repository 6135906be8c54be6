-- How many retry_runs would find; counted up to $8 (null: all)
SELECT count(*)::bigint AS runs
  FROM {schema}.settled_matching(kind => $1, project_id => $2, state => coalesce($3, 'failed'), finished_after => $4,
      finished_before => $5, error_code => $6, error => $7, max_runs => $8)
