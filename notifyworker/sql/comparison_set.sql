-- $1 kind, $2 ignored paths, $3 tolerances, $4 whether effects must come in the same order
SELECT {schema}.set_comparison($1, $2, $3, $4)
