-- Runs whose id ends in what the page shows of it, among the newest $2 of each sort. $1 the last eight characters
SELECT run_id FROM (
    (SELECT run_id FROM {schema}.runs ORDER BY run_id DESC LIMIT $2) UNION ALL
    (SELECT run_id FROM {schema}.run_history ORDER BY run_id DESC LIMIT $2)) AS r
 WHERE right(run_id::text, 8) = $1 LIMIT 2
