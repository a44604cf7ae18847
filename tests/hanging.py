"""Commits that hang in a real Postgres: each holds its ledger rows and goes no further."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg

# (Of `spent` only: a raised generation does not hang by itself.)
_HANG: Final = """
    CREATE TABLE IF NOT EXISTS hanging (since timestamptz);
    INSERT INTO hanging VALUES (now());
    CREATE OR REPLACE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        WHILE EXISTS (SELECT FROM hanging) LOOP PERFORM pg_sleep(0.005); END LOOP;
        RETURN NULL;
    END $$;
    CREATE OR REPLACE TRIGGER hang AFTER UPDATE OF spent ON ledger FOR EACH STATEMENT EXECUTE FUNCTION hang();
"""


@contextmanager
def commits_hang(db_url: str) -> Iterator[None]:
    """While the block runs; recoveries wait for those rows."""
    with psycopg.connect(db_url, autocommit=True) as connection:
        connection.execute(_HANG)
        try:
            yield
        finally:
            connection.execute("DELETE FROM hanging")
