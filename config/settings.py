"""Every setting of Headrace: typed, from the environment, checked one by one and against each other.

Owns names, defaults, allowed ranges and the sum behind each default. Knows nothing of what the settings
are used for. `docs/settings.md` is generated from this file (`make settings`), and a test holds it to that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Settings", "SettingsError", "load_settings", "settings_page"]

DB_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
REDIS_SCHEMES = ("redis", "rediss", "unix")


class SettingsError(ValueError):
    """A setting has a value that is not allowed; the message gives its name, the value and what is allowed."""


def _number(default: float, why: str, low: float, high: float, *, or_zero: bool = False) -> Any:
    return field(default=default, metadata={"why": why, "low": low, "high": high, "or_zero": or_zero})


def _text(default: str, why: str) -> Any:
    return field(default=default, metadata={"why": why})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one Headrace. Build it with `load_settings`; in tests, directly.

    Raises `SettingsError` from the constructor when a value is outside its range or two values contradict
    each other.
    """

    db_url: str = _text("", "Postgres: `postgresql://…`. Empty: an embedded Postgres in `HEADRACE_DATA`.")
    redis_url: str = _text("", "Redis: `redis://`, `rediss://` or `unix://`. Empty: an embedded Redis.")
    api: str = _text("127.0.0.1:8000", "Address of the api listener, host:port. Port 0 picks a free one.")
    intake: str = _text("127.0.0.1:8001", "Address of the intake listener, host:port. Port 0 picks a free one.")
    data: str = _text(".data", "Folder of the embedded stores.")
    workers: int = _number(1, "Engine processes. They are symmetric: add one for each core to spare.", 1, 64)

    request_events_max: int = _number(5_000, "Events in one batch: five reserve calls of one campaign.", 1, 100_000)
    request_bytes_max: int = _number(
        4 << 20, "Bytes of one body, decoded: 5,000 events of 800 bytes, three times a full one.", 1_024, 64 << 20
    )
    string_bytes_max: int = _number(128, "Bytes of user_id, ad_id and name: a UUID is 36, a SHA-512 128.", 1, 1_024)
    occurred_past_seconds: int = _number(
        172_800, "Oldest `occurred_at` accepted: 48 h, a weekend's outage.", 60, 604_800
    )
    occurred_ahead_seconds: int = _number(
        300, "How far `occurred_at` may be ahead of us: a bad clock's 5 min.", 0, 3_600
    )

    mailbox_events_max: int = _number(
        20_000, "Events waiting for one campaign: 0.2 s of one campaign at full rate; more is refused.", 1, 1_000_000
    )
    engine_events_max: int = _number(
        100_000, "Events in the engine without a verdict: 1.1 KB each (0.6 KB in large batches), 110 MB.", 1, 10_000_000
    )
    request_deadline_seconds: float = _number(
        10.0, "What has no verdict by then is answered 503: below the 15 to 30 s most senders wait.", 0.1, 300
    )
    reserve_events_max: int = _number(
        1_000, "Events of one reserve call: 3 ms of Redis; Lua's unpack ends at 8,000.", 1, 1_000
    )
    round_events_max: int = _number(
        5_000, "Events of one ledger round, all campaigns: 15 ms of Redis, so a lone event waits no longer.", 1, 100_000
    )
    flush_events_max: int = _number(10_000, "Events of one flush: 25 ms of COPY; larger gains nothing.", 1, 100_000)
    flush_connections: int = _number(2, "Flushes in flight: while one commits, the next is sent.", 1, 16)
    flush_queue_events_max: int = _number(
        40_000,
        "Events reserved and waiting for a flush: two full flushes a connection; then rounds pause.",
        1,
        1_000_000,
    )
    flush_timeout_seconds: float = _number(10.0, "A flush unanswered by then is unknown, and recovered.", 0.1, 300)
    ledger_timeout_seconds: float = _number(
        5.0, "What of a ledger round was sent and has no answer by then is unknown, and recovered.", 0.1, 300
    )
    query_connections: int = _number(
        13,
        "Postgres connections for queries, opened as they are needed: four for recoveries, four for look-ups, three "
        "for campaigns and reports, one for ids on an unknown day and one for plans.",
        8,
        100,
    )
    query_timeout_seconds: float = _number(10.0, "A query to Postgres unanswered by then has failed.", 0.1, 300)

    dedup_bucket_seconds: int = _number(
        480,
        "Age at which a bucket of the dedup window closes, if Redis's memory is not short: it knows ids for one to two "
        "buckets, at most 90 bytes each.",
        1,
        86_400,
    )
    actor_idle_seconds: float = _number(60.0, "A campaign without mail for so long is passivated.", 1, 86_400)
    actors_max: int = _number(50_000, "Live campaigns in one process: 4 KB each, 200 MB.", 1, 1_000_000)
    restarts_max: int = _number(
        5,
        "Restarts of one crashed actor within the window; then it answers 503. Also starts of an embedded store that "
        "died, and of workers none of which gets ready; then they are given up.",
        0,
        1_000,
    )
    restart_window_seconds: float = _number(60.0, "The window of `HEADRACE_RESTARTS_MAX`.", 1, 3_600)
    recoveries_max: int = _number(
        4,
        "Recoveries at once, three of many campaigns, the others of one each.",
        4,
        64,
    )
    lookup_events_max: int = _number(1_000, "Ids of one look-up in Postgres: 20 ms of index probes.", 1, 100_000)

    heartbeat_seconds: float = _number(2.0, "How often an engine process says in Postgres that it is alive.", 0.1, 60)
    engine_dead_seconds: float = _number(
        8.0, "Silent for so long, an engine is dead: four heartbeats. Its campaigns are back 2 s later.", 0.3, 600
    )
    clock_warn_seconds: float = _number(2.0, "Clock off from Postgres's or Redis's by more: a warning.", 0.1, 60)
    clock_refuse_seconds: float = _number(
        30.0, "Clock off from a store's, or from one that nobody sets, by more: not ready, 503.", 1, 600
    )
    outage_quiet_seconds: float = _number(
        2.0, "A store that failed must work for so long before `/readyz` is 200 again: a campaign's retry.", 0.05, 60
    )
    partitions_ahead_days: int = _number(7, "Daily partitions made ahead: a week without a running engine.", 1, 90)

    worker_silent_seconds: float = _number(
        30.0,
        "A worker that is frozen is killed and replaced after this: its longest work takes 0.7 s, ten times that on a "
        "machine that is busy, and four times that while memory is swapped.",
        2,
        600,
    )
    drain_seconds: float = _number(20.0, "SIGTERM to exit at most: a request's deadline twice.", 1, 300)
    connections_max: int = _number(
        4_096,
        "Connections of each listener: 64 KB of buffers each at most, 256 MB. Fewer where `ulimit -n` is small.",
        1,
        65_536,
    )
    header_bytes_max: int = _number(
        16_384, "Bytes of a request's head: h11's and nginx's order of size.", 1_024, 1 << 20
    )
    intake_bytes_max: int = _number(
        256 << 20,
        "Bytes of bodies arriving at the intake, or at the api, at once: 64 full ones; more is 503. As many again "
        "of long ones that are being read, half as sent and half as decoded.",
        1 << 20,
        64 << 30,
    )
    pipelined_requests_max: int = _number(
        32, "Requests of one connection without an answer; then it is read no more: senders pipeline a few.", 1, 1_024
    )
    answer_bytes_max: int = _number(
        65_536, "Bytes of answers that a sender leaves unread; one more and it is closed: 300 singles.", 1_024, 1 << 26
    )
    read_timeout_seconds: float = _number(
        30.0, "A request must arrive whole, its answer make progress within this: who is slow holds memory.", 1, 600
    )
    idle_timeout_seconds: float = _number(75.0, "An idle keep-alive connection is closed: nginx's default.", 1, 3_600)
    redis_memory_mb: int = _number(
        0,
        "`maxmemory` of the embedded Redis, in MB. 0: a quarter of the machine's memory, or of what the cgroup allows "
        "where that is less; at least 256. The log says how much it is, and what it holds.",
        64,
        1 << 20,
        or_zero=True,
    )
    postgres_memory_mb: int = _number(
        0,
        "`shared_buffers` of the embedded Postgres, in MB. 0: a quarter of the machine's memory, or of what the cgroup "
        "allows where that is less; from 128 to 8,192. Ids that tell no time (UUIDv4) want the day's index to fit.",
        16,
        1 << 20,
        or_zero=True,
    )
    failpoint: str = _text("", "For fault tests: where this process kills or freezes itself (engine/failpoints.py).")

    def __post_init__(self) -> None:
        for setting in fields(self):
            _check_one(variable(setting.name), getattr(self, setting.name), setting)
        _check_url("DB_URL", self.db_url, DB_SCHEMES)
        _check_url("REDIS_URL", self.redis_url, REDIS_SCHEMES)
        for name in ("api", "intake"):
            parse_address(variable(name), getattr(self, name))
        for smaller, larger, because in _ORDERED:
            small, large = getattr(self, smaller), getattr(self, larger)
            if small > large:
                raise SettingsError(
                    f"{variable(smaller)} is {small} and {variable(larger)} is {large}: "
                    f"{variable(smaller)} may be at most {variable(larger)}, because {because}"
                )
        if self.query_connections < self.recoveries_max + _OTHER_QUERIES_MIN:
            raise SettingsError(
                f"{variable('recoveries_max')} is {self.recoveries_max} and {variable('query_connections')} is "
                f"{self.query_connections}: {variable('query_connections')} {_CONNECTIONS}"
            )

    @property
    def look_ups_at_once(self) -> int:
        """Look-ups of events in Postgres: half of the connections that nothing else has."""
        return (self._spare_connections + 1) // 2

    @property
    def callers_at_once(self) -> int:
        """Calls about campaigns and reports: the other half. No number of them keeps a look-up waiting."""
        return self._spare_connections // 2

    @property
    def _spare_connections(self) -> int:
        return self.query_connections - self.recoveries_max - _OTHER_QUERIES_MIN + 2

    @property
    def data_path(self) -> Path:
        """The folder of the embedded stores, absolute."""
        return Path(self.data).absolute()


# Queries beside those of recoveries: one look-up and one call at least, one for ids on an unknown day, one for plans.
# (What else asks now and then waits until one of them is free.)
_OTHER_QUERIES_MIN = 4
_CONNECTIONS = (
    f"must be at least {_OTHER_QUERIES_MIN} more, because each recovery uses one connection, and look-ups, calls about "
    "campaigns, ids on an unknown day, and plans at least one each"
)
_ORDERED = (
    ("reserve_events_max", "round_events_max", "a round carries whole calls"),
    ("reserve_events_max", "mailbox_events_max", "a call is filled from the mailbox"),
    ("reserve_events_max", "flush_events_max", "a flush carries whole reservations"),
    ("flush_events_max", "flush_queue_events_max", "a flush is filled from the queue"),
    ("mailbox_events_max", "engine_events_max", "the mailboxes share the engine's room"),
    ("request_events_max", "mailbox_events_max", "a batch may be all of one campaign"),
    ("request_bytes_max", "intake_bytes_max", "one full body must be able to arrive"),
    ("clock_warn_seconds", "clock_refuse_seconds", "a warning comes before a refusal"),
    ("heartbeat_seconds", "engine_dead_seconds", "a living engine must not look dead"),
)


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from environment variables (`os.environ` by default).

    Raises `SettingsError` for a value that can't be read or is not allowed, and for an unknown
    `HEADRACE_…` variable, which is most often a typing error.
    """
    environment = os.environ if environment is None else environment
    by_variable = {variable(setting.name): setting for setting in fields(Settings)}
    unknown = sorted(name for name in environment if name.startswith("HEADRACE_") and name not in by_variable)
    if unknown:
        raise SettingsError(f"unknown setting {unknown[0]}: docs/settings.md lists all of them")
    values: dict[str, Any] = {}
    for name, setting in by_variable.items():
        text = environment.get(name)
        if text is None or text == "":
            continue
        read = {"int": int, "float": float, "str": str}[str(setting.type)]
        try:
            values[setting.name] = read(text)
        except ValueError:
            what = "a whole number" if read is int else "a number"
            raise SettingsError(f"{name} is {text!r}: it must be {what} {_allowed(setting)}") from None
    return Settings(**values)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return name.upper() if name in ("db_url", "redis_url") else f"HEADRACE_{name.upper()}"


def parse_address(name: str, text: str) -> tuple[str, int]:
    """Split "host:port"; IPv6 hosts stand in brackets. Raises `SettingsError`, naming the setting `name`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise SettingsError(f"{name} is {text!r}: it must be host:port, such as 127.0.0.1:8000")
    return host.strip("[]"), int(port)


def settings_page() -> str:
    """The page `docs/settings.md`, in Markdown."""
    lines = [
        "# Settings",
        "",
        "Made by `make settings` from `config/settings.py`. Environment variables, read once at start;",
        "a value that is not allowed is refused with its name, the value and what is allowed.",
        "",
        "| variable | default | allowed | what, and the sum behind the default |",
        "|---|---|---|---|",
    ]
    for setting in fields(Settings):
        default = setting.default if setting.default != "" else "unset"
        lines.append(
            f"| `{variable(setting.name)}` | {default} | {_allowed(setting) or 'text'} | {setting.metadata['why']} |"
        )
    lines += ["", "Checked against each other:", ""]
    lines += [f"- `{variable(a)}` may be at most `{variable(b)}`: {because}." for a, b, because in _ORDERED]
    lines.append(f"- `{variable('query_connections')}`, beside `{variable('recoveries_max')}`, {_CONNECTIONS}.")
    return "\n".join([*lines, ""])


def _allowed(setting: Any) -> str:
    if "low" not in setting.metadata:
        return ""
    zero = "0, or " if setting.metadata["or_zero"] else ""
    return f"{zero}from {setting.metadata['low']} to {setting.metadata['high']}"


def _check_one(name: str, value: Any, setting: Any) -> None:
    if "low" not in setting.metadata or (value == 0 and setting.metadata["or_zero"]):
        return
    if not setting.metadata["low"] <= value <= setting.metadata["high"]:
        raise SettingsError(f"{name} is {value}: it must be {_allowed(setting)}")


def _check_url(name: str, url: str, schemes: tuple[str, ...]) -> None:
    if url and urlsplit(url).scheme not in schemes:
        # The URL itself may hold a password: only its scheme is shown.
        allowed = ", ".join(f"{scheme}://" for scheme in schemes)
        raise SettingsError(f"{name} begins with {urlsplit(url).scheme!r}: it must begin with one of {allowed}")
