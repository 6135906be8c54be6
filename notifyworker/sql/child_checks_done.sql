-- $1 check_ids
DELETE FROM {schema}.child_checks WHERE check_id = ANY ($1::bigint[]) RETURNING check_id
