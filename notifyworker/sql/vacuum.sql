-- Never truncates, which would lock out claims, and never waits for a lock. Indexes always: theirs are the dead entries
-- that a claim walks over.
VACUUM (TRUNCATE false, SKIP_LOCKED true, INDEX_CLEANUP on) {schema}.runs
