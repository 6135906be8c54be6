SELECT {schema}.drain($1, undo => $2) AS found
