SELECT {schema}.mend_events() AS mended
