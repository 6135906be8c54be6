-- Whether something is left that needs a worker awake although nothing is ready: runs that are executed somewhere, so that
-- somebody has to notice the end of who executes them, and notes about runs that wait for their children.
SELECT EXISTS (SELECT FROM {schema}.runs WHERE lease_expires_at IS NOT NULL)
    OR EXISTS (SELECT FROM {schema}.child_checks) AS is_watched
