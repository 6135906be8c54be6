-- Runs that this worker holds by the database's word: how a claim without an answer is found out.
-- $1 lease_owner
SELECT run_id, kind, lease_token, attempt, is_limited FROM {schema}.runs WHERE lease_expires_at IS NOT NULL AND lease_owner = $1
