-- The leader's net: places that nobody holds any more, runs that wait for a key that is free.
SELECT {schema}.mend_limits() AS mended
