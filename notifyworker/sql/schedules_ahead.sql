-- In how many seconds the next is due, and those that can't be fired.
SELECT (SELECT date_part('epoch', min(next_at) - now()) FROM {schema}.schedules WHERE NOT paused AND error IS NULL) AS due_in_s,
       coalesce(array_agg(name ORDER BY name), '{}') AS faulty, coalesce(array_agg(error ORDER BY name), '{}') AS errors
  FROM {schema}.schedules
 WHERE NOT paused AND error IS NOT NULL
