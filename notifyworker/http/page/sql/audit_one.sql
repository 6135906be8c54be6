SELECT audit_id, at, actor, action, target, matched, changed, outcome FROM {schema}.audit WHERE audit_id = $1
