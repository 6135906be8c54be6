-- COPY is refused where row-level security holds for this role, as with projects that are separated.
SELECT NOT row_security_active('{schema}.runs') AS may_copy
