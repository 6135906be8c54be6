-- $1 audit_id, $2 how many were changed, $3 what became of the others
UPDATE {schema}.audit SET changed = $2, outcome = $3 WHERE audit_id = $1 RETURNING audit_id
