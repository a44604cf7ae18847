"""The bench's requests: ids that are valid and never the same, and events that the audit can tell again."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import Any

import msgspec
import pytest

from bench.bodies import OLD_STEM, STEM, Template, make_templates, stem
from bench.scenario import Scenario, scenarios

NOW_MS = 1_800_000_000_000
CAMPAIGNS = [7, 8, 9]


def made(batch: int, **fields: Any) -> list[Template]:
    """Templates of a scenario."""
    scenario = Scenario(about="", name="tried", **{"campaigns": 3, **fields})
    return make_templates(scenario, batch, CAMPAIGNS, seed=1, host="127.0.0.1:1")


def sent(template: Template, number: int, old: int = 0) -> list[dict[str, Any]]:
    """The events of a request, as the system reads them."""
    request = template.request.replace(STEM, stem(NOW_MS, number)).replace(OLD_STEM, stem(NOW_MS, old))
    head, _, body = request.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
    read = json.loads(body)
    return read if isinstance(read, list) else [read]


def test_ids_are_uuids_of_version_seven() -> None:
    """Of the time that was told, and another one for every request."""
    ids = {uuid.UUID(f"{stem(NOW_MS, number).decode()}-000000000001") for number in (0, 1, 4_095, 4_096, 1 << 23)}
    assert len(ids) == 5
    assert {(each.version, each.int >> 80) for each in ids} == {(7, NOW_MS)}


@pytest.mark.parametrize("batch", [1, 10])
def test_events_are_what_their_lines_say(batch: int) -> None:
    """Id, campaign, user and type; every user new."""
    template = made(batch)[1]
    own = stem(NOW_MS, 5).decode()
    for event, line in zip(sent(template, 5), template.lines, strict=True):
        assert event["event_id"] == f"{own}-{line.tail}"
        assert event["campaign_id"] == line.campaign_id
        assert event["user_id"] == line.user.replace("#", own)
        assert event["event_type"] == ("impression", "click")[line.event_type]


def test_the_same_seed_makes_the_same_requests() -> None:
    """In the same order."""
    assert made(10) == made(10)


def test_no_two_events_of_a_run_have_the_same_id() -> None:
    """Whatever template and place."""
    tails = Counter(line.tail for template in made(10) for line in template.lines)
    assert max(tails.values()) == 1


def test_a_repeat_is_an_event_of_an_earlier_request() -> None:
    """The same id, campaign, user and type."""
    template = next(each for each in made(10, repeats_share=0.3) if each.repeats)
    first, again = sent(template, 1, old=1), sent(template, 2, old=1)
    at = next(at for at, line in enumerate(template.lines) if line.old)
    assert again[at] in first


def test_bad_events_are_json_and_marked() -> None:
    """About as many as asked for, so that one costs only itself."""
    templates = made(10, bad_share=0.2)
    lines = [line for template in templates for line in template.lines]
    assert 0.15 < sum(line.bad for line in lines) / len(lines) < 0.25
    for template in templates[:50]:
        assert len(sent(template, 1)) == 10


def test_a_hot_campaign_gets_its_share() -> None:
    """Nine of ten."""
    drawn = Counter(line.campaign_id for template in made(10, hot_share=0.9) for line in template.lines)
    assert 0.9 < drawn[7] / drawn.total() < 0.97


def test_the_scenarios_of_the_file_are_read() -> None:
    """Each says what it is about; a name that means nothing is told."""
    known = scenarios()
    assert {"even", "hot", "many", "exhausted", "capped", "duplicates", "bad", "bursts", "reports"} <= known.keys()
    assert all(scenario.about for scenario in known.values())
    with pytest.raises(msgspec.ValidationError, match="colour"):
        msgspec.convert({"about": "x", "colour": "red"}, Scenario)


def test_campaigns_in_turn_come_round() -> None:
    """Each once before any comes again."""
    campaigns = [line.campaign_id for template in made(2, in_turn=True)[:3] for line in template.lines]
    assert campaigns == CAMPAIGNS * 2


def test_two_senders_at_once_have_no_id_in_common() -> None:
    """Their stems may be the same: the numbers of their templates are not."""
    plain = Scenario(about="", name="tried", campaigns=3)
    ours = make_templates(plain, 10, CAMPAIGNS, seed=1, host="h")
    theirs = make_templates(plain, 10, CAMPAIGNS, seed=1, host="h", first=len(ours))
    tails = [{line.tail for template in templates for line in template.lines} for templates in (ours, theirs)]
    assert not tails[0] & tails[1]
