-- For tests: rows have become due by a change that wakes nobody.
SELECT pg_notify('{name}', 'schedules:'), pg_notify('{name}', 'at:' || extract(epoch FROM
    least(now(), (SELECT min(run_at) FROM {schema}.runs WHERE state = 'pending'))))
