"""How many connections the process's descriptors allow."""

from __future__ import annotations

import pytest

from api.descriptors import KEPT, LISTENERS, connections_that_fit, lingering_max


@pytest.mark.parametrize("descriptors", [200, 256, 512, 1_024, 4_096, 65_536])
def test_full_listeners_leave_room_for_the_stores(descriptors: int) -> None:
    """Both of them, with all that linger."""
    fitting = connections_that_fit(65_536, descriptors)
    used = LISTENERS * (fitting + lingering_max(fitting))
    assert descriptors - used >= KEPT - 2  # of rounding
    assert fitting >= 32


def test_what_fits_is_not_reduced() -> None:
    """The settings hold where the machine allows it."""
    assert connections_that_fit(4_096, 65_536) == 4_096


def test_a_listener_serves_somebody() -> None:
    """However few descriptors there are."""
    assert connections_that_fit(4_096, 16) == 1
