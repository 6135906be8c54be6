SELECT name, value #>> '{}' AS value FROM {schema}.settings
