-- $1 run_ids, $2 channel
SELECT {schema}.expect_no_more($1, $2) IS NULL AS forgotten
