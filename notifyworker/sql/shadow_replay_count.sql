-- How many settled runs there are to be chosen. $1 kind, $2 project_id (null: any), $3 finished_after, $4 finished_before
SELECT count(*) AS runs FROM {schema}.run_history AS h
 WHERE h.kind = $1 AND h.state IN ('completed', 'failed') AND NOT h.is_shadow AND ($2::text IS NULL OR h.project_id = $2)
   AND ($3::timestamptz IS NULL OR h.finished_at >= $3) AND ($4::timestamptz IS NULL OR h.finished_at < $4)
