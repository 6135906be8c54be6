-- Which of these runs were settled under exactly this lease: how a settle without an answer is found out.
-- $1 lease_owner, $2 run_ids, $3 their lease_tokens
SELECT h.run_id
  FROM unnest($2::uuid[], $3::bigint[]) AS held (run_id, lease_token), LATERAL (
      SELECT h.run_id
        FROM {schema}.run_history AS h
       WHERE h.run_id = held.run_id AND h.lease_token = held.lease_token AND h.settled_by = $1
      OFFSET 0) AS h
