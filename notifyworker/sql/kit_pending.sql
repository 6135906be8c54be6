-- For tests: the newest runs, of one kind if it is given, those that wait first. $1 kind (null: any), $2 limit
SELECT * FROM {schema}.all_runs
 WHERE $1::text IS NULL OR kind = $1
 ORDER BY (state = 'pending') DESC, run_id DESC LIMIT $2
