-- Weights that were given; every other project has 1. And how many runs of each are executed now.
SELECT s.project_id, s.weight, s.changed_at,
       (SELECT count(*) FROM {schema}.runs AS r WHERE r.lease_expires_at IS NOT NULL AND r.project_id = s.project_id) AS running
  FROM {schema}.shares AS s
 ORDER BY s.project_id
