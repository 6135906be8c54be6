-- Whether a step was recorded under exactly this lease: how a commit without an answer is found out.
-- $1 run_id, $2 lease_token, $3 position
SELECT EXISTS (SELECT FROM {schema}.steps AS s
                WHERE s.run_id = $1 AND s.lease_token = $2 AND s.position = $3 AND s.error IS NULL) AS recorded
