-- $1 day (null: the default partition), $2 from this page on, $3 so many pages, $4 count only
SELECT deleted, next_page, all_pages FROM {schema}.delete_expired($1, $2, $3, $4)
