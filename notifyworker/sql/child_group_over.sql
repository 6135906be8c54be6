-- Nobody waits for it any more. $1 parent_id, $2 its created_at, $3 number
UPDATE {schema}.child_groups SET closed_at = now()
 WHERE parent_id = $1 AND parent_created_at = $2 AND number = $3::integer AND closed_at IS NULL
