-- $1 run_id. A live run before a settled one of the same id, a later one before an earlier one. key_held_by: runs that hold
-- the key that it waits for, also such that are cancelled and whose handlers have not ended yet.
SELECT a.*, CASE WHEN a.waits_for = 'key' THEN array(
           SELECT p.run_id FROM {schema}.places AS p
            WHERE p.limit_id = 0 AND p.project_id = a.project_id AND p.key = a.concurrency_key LIMIT 10) END AS key_held_by
  FROM {schema}.all_runs AS a WHERE a.run_id = $1 ORDER BY a.finished_at DESC NULLS FIRST LIMIT 1
