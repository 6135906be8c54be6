-- Newest first. $1 state, $2 kind, $3 project_id, $4 is_shadow (null: any), $5 from this run_id on, $6 below this one
-- (null: no bound). No index helps with the others, so they are looked for in the newest $7 that these leave:
-- $8 the beginning of a worker's name, $9 text in the payload (null: any); $10 limit
-- key_held_by as in run_get.sql
SELECT newest.*, CASE WHEN waits_for = 'key' THEN array(
           SELECT p.run_id FROM {schema}.places AS p
            WHERE p.limit_id = 0 AND p.project_id = newest.project_id AND p.key = newest.concurrency_key LIMIT 10) END AS key_held_by
  FROM (
    SELECT * FROM {schema}.all_runs
     WHERE ($1::text IS NULL OR state = $1) AND ($2::text IS NULL OR kind = $2) AND ($3::text IS NULL OR project_id = $3)
       AND ($4::boolean IS NULL OR is_shadow = $4) AND ($5::uuid IS NULL OR run_id >= $5) AND ($6::uuid IS NULL OR run_id < $6)
     ORDER BY run_id DESC LIMIT $7) AS newest
 WHERE ($8::text IS NULL OR starts_with(lease_owner, $8) OR starts_with(settled_by, $8)
        OR EXISTS (SELECT FROM jsonb_array_elements(errors) AS e WHERE starts_with(e ->> 'worker', $8)))
   AND ($9::text IS NULL OR position(lower($9) IN lower(payload::text)) > 0)
 ORDER BY run_id DESC LIMIT $10
