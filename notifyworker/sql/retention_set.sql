SELECT {schema}.set_retention($1, kind => $2, project_id => $3)
