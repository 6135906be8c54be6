-- $1 payload. Silent above one half of the notification queue: a full one would fail the commits of others.
SELECT CASE WHEN pg_notification_queue_usage() < 0.5 THEN pg_notify('{name}', $1) IS NULL END AS silent
