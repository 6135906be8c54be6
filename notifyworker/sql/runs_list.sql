-- Newest first. $1 state, $2 kind, $3 project_id (null: any), $4 below this run_id (null: from the newest), $5 limit.
-- key_held_by as in run_get.sql
SELECT a.*, CASE WHEN a.waits_for = 'key' THEN array(
           SELECT p.run_id FROM {schema}.places AS p
            WHERE p.limit_id = 0 AND p.project_id = a.project_id AND p.key = a.concurrency_key LIMIT 10) END AS key_held_by
  FROM (SELECT * FROM {schema}.all_runs
         WHERE ($1::text IS NULL OR state = $1) AND ($2::text IS NULL OR kind = $2) AND ($3::text IS NULL OR project_id = $3)
           AND ($4::uuid IS NULL OR run_id < $4)
         ORDER BY run_id DESC LIMIT $5) AS a
 ORDER BY a.run_id DESC
