"""How our sessions in Postgres present themselves, and how soon each side finds out that the other is gone.

Owns their names, which carry the number of their engine, and the bounds of the network below them. Knows no
connection and no table.
"""

from __future__ import annotations

from typing import Any, Final

from engine.opening import KEEPALIVE_COUNT, KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS, UNSENT_SECONDS

# Our side, as libpq names it.
OURS: Final[dict[str, Any]] = {
    "keepalives": 1,
    "keepalives_idle": KEEPALIVE_IDLE_SECONDS,
    "keepalives_interval": KEEPALIVE_INTERVAL_SECONDS,
    "keepalives_count": KEEPALIVE_COUNT,
    "tcp_user_timeout": UNSENT_SECONDS * 1_000,
}
# The server's side. (On a unix socket they mean nothing, and do no harm.)
THEIRS: Final = {
    "tcp_keepalives_idle": str(KEEPALIVE_IDLE_SECONDS),
    "tcp_keepalives_interval": str(KEEPALIVE_INTERVAL_SECONDS),
    "tcp_keepalives_count": str(KEEPALIVE_COUNT),
    "tcp_user_timeout": str(UNSENT_SECONDS * 1_000),
}
# A backend that runs a query or waits for a lock looks once a second whether its client is still there. Not every
# platform can, and those refuse the setting.
LOOK_FOR_CLIENT: Final = (
    "SELECT set_config('client_connection_check_interval', '1000', false) WHERE version() LIKE '%linux%'"
)
# Names of engines' sessions, as a pattern of Postgres; the first group is the engine's number.
NUMBERED: Final = "^headrace ([0-9]{1,18}) "


class Signature:
    """Whose sessions they are: `number` is None until the engine is registered, and for commands that are none."""

    def __init__(self) -> None:
        self.number: int | None = None

    def name(self, work: str) -> str:
        """`application_name` of a session for this kind of work: "headrace 17 flush"."""
        return f"headrace {work}" if self.number is None else f"headrace {self.number} {work}"
