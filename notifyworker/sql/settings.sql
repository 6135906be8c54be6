SELECT name, value FROM {schema}.settings
