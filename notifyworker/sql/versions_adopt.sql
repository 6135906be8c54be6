-- What is live by itself where nothing is said. An element a kind: $1 kind, $2 its first version
SELECT {schema}.adopt_versions($1, $2)
