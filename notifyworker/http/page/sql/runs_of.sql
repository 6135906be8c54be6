-- $1 run_ids: those that are there, and what they are now
SELECT run_id, kind, project_id, state FROM {schema}.all_runs WHERE run_id = ANY ($1::uuid[]) ORDER BY run_id DESC
