-- $1 run_id. A live run before a settled one of the same id, a later one before an earlier one.
SELECT * FROM {schema}.all_runs WHERE run_id = $1 ORDER BY finished_at DESC NULLS FIRST LIMIT 1
