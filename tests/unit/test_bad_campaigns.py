"""An event that can't be decoded keeps its place among its campaign's events."""

from __future__ import annotations

import pytest

from api.codec import NDJSON, read_events
from config.settings import Settings


@pytest.mark.parametrize("content_type", ["application/json", NDJSON])
@pytest.mark.parametrize(
    ("bad", "campaign_id"),
    [
        ('{"campaign_id":7}', 7),
        ('{"campaign_id":7,"user_id":"u","event_type":"view","event_id":"no id"}', 7),
        ('{"campaign_id":7,"user_id":"\\ud800","event_type":"click"}', 7),
        ('{"campaign_id":"7","user_id":"u","event_type":"click"}', None),
        ('{"user_id":"u","event_type":"click"}', None),
        ("[7]", None),
        ('{"campaign_id":7,"user_id":"' + "u" * 20_000 + '","event_type":"click"}', 7),
    ],
)
def test_the_campaign_of_a_bad_event_is_read_where_it_can_be(
    bad: str, campaign_id: int | None, content_type: str
) -> None:
    """Whatever else is wrong with it."""
    body = (bad if content_type == NDJSON else f"[{bad}]").encode()
    (invalid,) = read_events(body, content_type=content_type, content_encoding="", batch=True, limits=Settings())
    assert invalid.campaign_id == campaign_id
