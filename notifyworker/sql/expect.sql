-- $1 run_ids, $2 channel
SELECT {schema}.expect($1, $2) IS NULL AS expected
