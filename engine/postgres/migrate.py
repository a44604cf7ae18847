"""The schema, brought to this program's version at start.

Owns the order of the migrations (`migrations/NNNN_name.sql`) and the table that records them. Several engines may
start at once: one migrates, the others wait for its lock and find it done.
"""

from __future__ import annotations

import logging
import time
from importlib.resources import files
from typing import Final, NamedTuple

from engine.errors import ConfigurationUnsafe
from engine.postgres.database import Connection

log = logging.getLogger(__name__)

_LOCK: Final = int.from_bytes(b"headrace", "big")  # key of the advisory lock
_LONG: Final = "-- May take long: "  # so begins a step whose time grows with the number of events


class Migration(NamedTuple):
    """One step of the schema. What is released never changes: a new step is added."""

    version: int
    name: str
    sql: str

    @property
    def takes_long(self) -> str:
        """What of it may take minutes, as its first line says; empty if nothing does."""
        first, _, _ = self.sql.partition("\n")
        return first.removeprefix(_LONG) if first.startswith(_LONG) else ""


def read_migrations() -> list[Migration]:
    """All steps that this program knows, in order, numbered from 1 without a gap."""
    folder = files("engine.postgres") / "migrations"
    steps = []
    for path in sorted((path for path in folder.iterdir() if path.name.endswith(".sql")), key=lambda path: path.name):
        number, _, name = path.name.removesuffix(".sql").partition("_")
        steps.append(Migration(int(number), name, path.read_text(encoding="utf-8")))
    assert [step.version for step in steps] == list(range(1, len(steps) + 1)), "migrations are numbered without a gap"
    return steps


async def migrate(connection: Connection) -> int:
    """Run what is missing, in one transaction; return how many steps ran (asyncio side).

    Raises `ConfigurationUnsafe` when the database was made by a newer program.
    """
    steps = read_migrations()
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            " (version int PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        found = await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_migrations")
        if found > len(steps):
            raise ConfigurationUnsafe(
                f"the database has schema version {found}, this program knows up to {len(steps)}: "
                "run a Headrace at least as new as the one that made it"
            )
        for step in steps[found:]:
            began = time.monotonic()
            if found and step.takes_long:  # (a database that is new has no events)
                log.info(
                    "migration %d (%s): %s Where they are many, this may take minutes before anything is served.",
                    step.version,
                    step.name,
                    step.takes_long,
                )
            await connection.execute(step.sql)
            await connection.execute(
                "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)", step.version, step.name
            )
            if found:
                log.info("migration %d (%s): done in %.1f s", step.version, step.name, time.monotonic() - began)
    return len(steps) - int(found)
