"""The front end: listeners, command line. Knows no Redis and no Postgres."""
