-- Actions, newest first. $1 text in the target (null: all), $2 below this id (null: from the newest), $3 limit
SELECT audit_id, at, actor, action, target, matched, changed, outcome
  FROM {schema}.audit
 WHERE ($1::text IS NULL OR strpos(target::text, $1) > 0) AND ($2::bigint IS NULL OR audit_id < $2)
 ORDER BY audit_id DESC LIMIT $3
