"""argv in, exit code out: one file per verb, each imported when it is used."""
