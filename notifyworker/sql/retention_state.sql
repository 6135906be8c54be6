-- What the days that have ended depend on: as long as this stays, nothing new is over.
SELECT concat_ws(' ', (now() AT TIME ZONE 'UTC')::date, (SELECT value FROM {schema}.settings WHERE name = 'history_retention_days'),
                 (SELECT string_agg(concat_ws('/', kind, project_id, days), ',' ORDER BY kind, project_id) FROM {schema}.retention)) AS state
