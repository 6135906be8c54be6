SELECT {schema}.cancel($1) AS state
