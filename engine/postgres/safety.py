"""What the engine relies on in Postgres, checked at start: a 200 must not depend on luck.

Owns the list of settings and the sentence for each. Settings are checked again with every heartbeat, because a
reload, a restart or a failover may change them; `synchronous_commit` is forced on in every session of ours anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.errors import ConfigurationUnsafe
from engine.postgres.database import Connection

VERSION_MIN: Final = 150_000

# What the server would use for us: `reset_val` leaves out what this session has set.
_QUERY: Final = """
    SELECT name, reset_val AS value FROM pg_settings
     WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit', 'server_version_num', 'server_encoding')
     UNION ALL SELECT 'in_recovery', CASE WHEN pg_is_in_recovery() THEN 'on' ELSE 'off' END
"""


async def check_server(connection: Connection) -> None:
    """Raise `ConfigurationUnsafe` when this server could lose a commit or can't take one (asyncio side)."""
    check_values({row["name"]: row["value"] for row in await connection.fetch(_QUERY)})


def check_values(values: Mapping[str, str]) -> None:
    """Raise `ConfigurationUnsafe` with the first thing that is wrong, and what to do about it."""
    if values["in_recovery"] == "on":
        raise ConfigurationUnsafe("this Postgres is a standby (in recovery): point DB_URL to the primary")
    if int(values["server_version_num"]) < VERSION_MIN:
        raise ConfigurationUnsafe(
            f"this Postgres has version {int(values['server_version_num']) // 10_000}: "
            f"{VERSION_MIN // 10_000} or newer is needed"
        )
    for name in ("fsync", "full_page_writes"):
        if values[name] != "on":
            raise ConfigurationUnsafe(
                f"Postgres has {name} = {values[name]}: a crash could lose committed events; set it to on"
            )
    if values["synchronous_commit"] == "off":
        raise ConfigurationUnsafe(
            "Postgres has synchronous_commit = off: a crash could lose committed events; set it to on"
        )
    if values["server_encoding"] != "UTF8":
        raise ConfigurationUnsafe(
            f"the database has the encoding {values['server_encoding']}: user and ad ids are UTF-8; "
            "create it with ENCODING 'UTF8'"
        )
