"""Settings are refused with their name, the value and what is allowed."""

from __future__ import annotations

import pytest

from config.settings import Settings, SettingsError, load_settings


def test_defaults_are_allowed() -> None:
    """A fresh clone needs no setting."""
    assert load_settings({}) == Settings()


def test_values_are_read_with_their_types() -> None:
    """Whole numbers, numbers and text."""
    settings = load_settings(
        {
            "HEADRACE_WORKERS": "2",
            "HEADRACE_FLUSH_TIMEOUT_SECONDS": "2.5",
            "REDIS_URL": "unix:///tmp/r.sock",
            "PATH": "x",
        }
    )
    assert (settings.workers, settings.flush_timeout_seconds) == (2, 2.5)
    assert settings.redis_url == "unix:///tmp/r.sock"


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"HEADRACE_WORKERS": "two"}, ["HEADRACE_WORKERS", "'two'", "whole number", "from 1 to 64"]),
        ({"HEADRACE_WORKERS": "0"}, ["HEADRACE_WORKERS", "0", "from 1 to 64"]),
        ({"HEADRACE_API": "8000"}, ["HEADRACE_API", "'8000'", "host:port"]),
        ({"HEADRACE_INTAKE": "::1:99999"}, ["HEADRACE_INTAKE", "host:port"]),
        ({"DB_URL": "mysql://u:secret@h/d"}, ["DB_URL", "'mysql'", "postgresql://"]),
        ({"REDIS_URL": "http://h"}, ["REDIS_URL", "'http'", "redis://"]),
        ({"HEADRACE_WORKER": "2"}, ["HEADRACE_WORKER", "docs/settings.md"]),
        (
            {"HEADRACE_FLUSH_EVENTS_MAX": "500"},
            ["HEADRACE_RESERVE_EVENTS_MAX is 1000", "HEADRACE_FLUSH_EVENTS_MAX is 500"],
        ),
        (
            {"HEADRACE_RECOVERIES_MAX": "10"},
            [
                "HEADRACE_RECOVERIES_MAX is 10",
                "HEADRACE_QUERY_CONNECTIONS is 13",
                "must be at least 4 more",
                "look-ups",
            ],
        ),
        ({"HEADRACE_REDIS_MEMORY_MB": "63"}, ["HEADRACE_REDIS_MEMORY_MB", "63", "0, or from 64 to 1048576"]),
        ({"HEADRACE_FLUSH_TIMEOUT_SECONDS": "nan"}, ["HEADRACE_FLUSH_TIMEOUT_SECONDS", "nan", "from 0.1 to 300"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_refused_with_what_is_allowed(environment: dict[str, str], told: list[str]) -> None:
    """The reader knows what to change."""
    with pytest.raises(SettingsError) as refused:
        load_settings(environment)
    for text in told:
        assert text in str(refused.value)


@pytest.mark.parametrize("connections", range(8, 101))
def test_look_ups_calls_and_recoveries_fit_into_the_connections_for_queries(connections: int) -> None:
    """With two to spare, for ids on an unknown day and for plans; and there is one for each at least."""
    for recoveries in range(4, min(connections - 4, 64) + 1):
        settings = Settings(query_connections=connections, recoveries_max=recoveries)
        assert min(settings.look_ups_at_once, settings.callers_at_once) >= 1
        assert settings.look_ups_at_once + settings.callers_at_once + recoveries + 2 == connections


def test_the_memory_of_redis_may_be_left_to_the_machine() -> None:
    """0 is below what is allowed, and means that."""
    assert load_settings({"HEADRACE_REDIS_MEMORY_MB": "0"}).redis_memory_mb == Settings().redis_memory_mb == 0
    assert load_settings({"HEADRACE_REDIS_MEMORY_MB": "64"}).redis_memory_mb == 64


def test_a_password_is_never_shown() -> None:
    """Not even in a refusal."""
    with pytest.raises(SettingsError) as refused:
        load_settings({"DB_URL": "mysql://u:secret@h/d"})
    assert "secret" not in str(refused.value)
