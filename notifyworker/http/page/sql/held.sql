-- Leases by worker: how many, the first to expire, and the run that is held the longest
SELECT lease_owner, count(*)::bigint AS leases, min(lease_expires_at) AS first_expires_at, min(started_at) AS oldest_at
  FROM {schema}.runs WHERE lease_expires_at IS NOT NULL GROUP BY lease_owner LIMIT 1000
