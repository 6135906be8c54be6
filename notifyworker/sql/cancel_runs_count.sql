-- How many cancel_runs would find; counted up to $6 (null: all)
SELECT count(*)::bigint AS runs
  FROM {schema}.live_matching(kind => $1, project_id => $2, state => $3, created_after => $4, created_before => $5,
      max_runs => $6)
