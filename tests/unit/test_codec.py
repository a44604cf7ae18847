"""The event contract of HTTP: what is read from a body, and what is answered."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
import zstandard

from api import encodings
from api.codec import batch_answer, event_answer, read_events
from api.errors import Answer, BadRequest
from config.settings import Settings
from engine import Entry, Event, Invalid, Reason, Status, StoredEvent, Submission, Verdict
from engine.model import CampaignId, EventId, EventType, Micros

ID = uuid.UUID("0190163d-8694-739b-aea5-966c26f8ad91")
GOOD = f'{{"campaign_id":7,"user_id":"u","event_type":"click","event_id":"{ID}"}}'
EVENT = Event(7, "u", "click", None, ID)
NDJSON = "application/x-ndjson"
LIMITS = Settings(request_bytes_max=200_000, request_events_max=1_000)


def read(
    body: str | bytes, *, batch: bool = False, content_type: str = "application/json", encoding: str = ""
) -> Sequence[Event | Invalid]:
    """`read_events` under the limits of these tests."""
    body = body.encode() if isinstance(body, str) else body
    return read_events(body, content_type=content_type, content_encoding=encoding, batch=batch, limits=LIMITS)


def refusal(body: str | bytes, **how: Any) -> dict[str, Any]:
    """The problem that the whole body is refused with."""
    with pytest.raises(BadRequest) as refused:
        read(body, **how)
    problem: dict[str, Any] = json.loads(refused.value.answer.body)
    assert problem["status"] == refused.value.answer.status
    return problem


def array(*events: str) -> str:
    """A JSON array of these texts."""
    return f"[{','.join(events)}]"


# --- Reading ---


def test_a_single_event_is_decoded() -> None:
    """JSON straight into the engine's type."""
    assert read(GOOD) == [EVENT]


def test_optional_fields() -> None:
    """ad_id and occurred_at come as text; whether it is a time is for the engine."""
    body = (
        '{"campaign_id":7,"user_id":"ü","event_type":"impression","ad_id":"a","occurred_at":"2026-01-31T12:00:00.5Z"}'
    )
    assert read(body) == [Event(7, "ü", "impression", "a", None, "2026-01-31T12:00:00.5Z")]


def test_an_array_is_decoded_in_order() -> None:
    """Event i of the answer is event i of the body."""
    assert read(array(GOOD, GOOD.replace("7", "8", 1)), batch=True) == [EVENT, Event(8, "u", "click", None, ID)]


def test_lines_are_decoded_and_blank_ones_skipped() -> None:
    """NDJSON with either end of line, and with or without the last one."""
    assert read(f"\n{GOOD}\r\n  \r\n{GOOD}", batch=True, content_type=NDJSON) == [EVENT, EVENT]


@pytest.mark.parametrize(("body", "content_type"), [("[]", ""), ("", NDJSON), ("\n\n", NDJSON)])
def test_an_empty_batch_is_no_mistake(body: str, content_type: str) -> None:
    """A collector with nothing to say gets its 200."""
    assert read(body, batch=True, content_type=content_type) == []


@pytest.mark.parametrize("content_type", ["", "application/json; charset=utf-8", "Application/JSON;x"])
def test_json_is_taken_with_parameters_and_by_default(content_type: str) -> None:
    """Plain HTTP libraries send no type at all."""
    assert read(GOOD, content_type=content_type) == [EVENT]


def test_a_form_is_refused_with_what_to_tell_curl() -> None:
    """What curl calls every body unless told otherwise."""
    problem = refusal(GOOD, content_type="application/x-www-form-urlencoded")
    assert (problem["status"], problem["code"]) == (415, "unsupported_content_type")
    assert "-H 'Content-Type: application/json'" in problem["detail"]


def test_lines_are_for_batches() -> None:
    """A single event is JSON."""
    assert refusal(GOOD, content_type=NDJSON)["status"] == 415


def test_a_key_that_stands_twice_counts_with_its_last_value() -> None:
    """As in nearly every other reader of JSON."""
    assert read(GOOD.replace('"user_id":"u"', '"user_id":"x","user_id":"u"')) == [EVENT]


def test_a_nul_is_left_to_the_engine() -> None:
    """It is JSON and text; what text may hold is not the codec's."""
    (event,) = read(GOOD.replace('"u"', r'"u\u0000"'))
    assert isinstance(event, Event)
    assert event.user_id == "u\0"


WRONG = {
    "no object": ("5", "an event must be a JSON object"),
    "null": ("null", "an event must be a JSON object"),
    "array": ("[]", "an event must be a JSON object"),
    "empty": ("{}", "campaign_id: is missing"),
    "missing": ('{"campaign_id":7,"user_id":"u"}', "event_type: is missing"),
    "unknown field": (GOOD.replace("user_id", "userid"), "userid: no such field"),
    "long name": (GOOD.replace("user_id", "x" * 999), "x" * 64 + ": no such field"),
    "text for number": (GOOD.replace("7", '"7"', 1), "campaign_id: must be a whole number"),
    "fraction": (GOOD.replace("7", "7.5", 1), "campaign_id: must be a whole number"),
    "zero": (GOOD.replace("7", "0", 1), "campaign_id: must be a whole number from 1"),
    "huge": (GOOD.replace("7", "1" + "0" * 5_000, 1), "campaign_id: must be a whole number"),
    "infinite": (GOOD.replace("7", "1e999", 1), "campaign_id: must be a whole number"),
    "above 63 bits": (GOOD.replace("7", str(2**63), 1), "campaign_id: must be a whole number"),
    "bool": (GOOD.replace("7", "true", 1), "campaign_id: must be a whole number"),
    "number for text": (GOOD.replace('"u"', "5"), "user_id: must be a string"),
    "null user": (GOOD.replace('"u"', "null"), "user_id: must be a string"),
    "type": (GOOD.replace("click", "Click"), "event_type: must be one of impression, click, conversion"),
    "id": (GOOD.replace(str(ID), "1234"), "event_id: must be a UUID"),
    "ad": (GOOD.replace('"u"', '"u","ad_id":{}'), "ad_id: must be a string or null"),
    "unix time": (GOOD.replace('"u"', '"u","occurred_at":1769860800'), "occurred_at: must be an RFC 3339"),
    "lone surrogate": (GOOD.replace('"u"', r'"\ud800"'), "user_id: must be Unicode text"),
    "reversed pair": (GOOD.replace('"u"', r'"\ude00\ud83d"'), "user_id: must be Unicode text"),
    "surrogate in a name": (GOOD.replace("user_id", r"\udfff"), "the name of a field: must be Unicode text"),
    "surrogate, overwritten": (GOOD.replace('"u"', r'"\ud800","user_id":"u"'), "must be Unicode text"),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "told"), WRONG.values(), ids=WRONG)
def test_json_that_is_no_event_is_invalid_alone(bad: str, told: str) -> None:
    """A single one is one `Invalid`, which names the field and what is allowed."""
    (invalid,) = read(bad)
    assert isinstance(invalid, Invalid)
    assert told in invalid.detail


@pytest.mark.parametrize("content_type", ["application/json", NDJSON])
@pytest.mark.parametrize(("bad", "told"), WRONG.values(), ids=WRONG)
def test_one_bad_event_in_a_thousand_costs_that_one(bad: str, told: str, content_type: str) -> None:
    """All others are taken, in their places."""
    texts = [GOOD] * 500 + [bad] + [GOOD] * 499
    body = "\n".join(texts) if content_type == NDJSON else array(*texts)
    events = read(body, batch=True, content_type=content_type)
    assert [index for index, event in enumerate(events) if event != EVENT] == [500]
    invalid = events[500]
    assert isinstance(invalid, Invalid)
    assert told in invalid.detail


@pytest.mark.parametrize("wrong", ["missing user", "lone surrogate"])
def test_a_bad_event_keeps_the_id_that_can_be_read(wrong: str) -> None:
    """Its sender finds it by that."""
    bad = GOOD.replace('"user_id":"u",', "") if wrong == "missing user" else GOOD.replace('"u"', r'"\ud800"')
    (invalid,) = read(bad)
    assert invalid.event_id == ID.bytes


@pytest.mark.parametrize("content_type", ["application/json", NDJSON])
def test_bytes_that_are_no_utf_8_cost_their_event(content_type: str) -> None:
    """The field is named."""
    bad = GOOD.encode().replace(b'"u"', b'"\xff"')
    good = GOOD.encode()
    body = good + b"\n" + bad if content_type == NDJSON else b"[" + good + b"," + bad + b"]"
    first, second = read(body, batch=True, content_type=content_type)
    assert first == EVENT
    assert isinstance(second, Invalid)
    assert second.detail.startswith("user_id: must be Unicode text")


@pytest.mark.parametrize(
    ("escaped", "text"), [(r"\ud83d\ude00", "😀"), (r"\\ud800", r"\ud800"), (r"\\\\ud800", r"\\ud800")]
)
def test_pairs_of_surrogates_and_escaped_backslashes_are_text(escaped: str, text: str) -> None:
    """Beside an event that makes us look for lone surrogates."""
    bad = GOOD.replace('"u"', r'"\ud800"')
    event, invalid = read(array(GOOD.replace('"u"', f'"{escaped}"'), bad), batch=True)
    assert isinstance(event, Event)
    assert event.user_id == text
    assert isinstance(invalid, Invalid)


NOT_JSON = {
    "nothing": "",
    "text": "hello",
    "truncated": GOOD[:-9],
    "truncated after a mistake": '{"x":1,',
    "trailing": GOOD + "x",
    "NaN": GOOD.replace("7", "NaN", 1),
    "raw control character": GOOD.replace('"u"', '"\x01"'),
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_a_body_that_is_not_json_is_refused(body: str) -> None:
    """A single one and an array alike: 400, nothing is accepted."""
    single = refusal(body)
    assert (single["status"], single["code"]) == (400, "malformed_json")
    batch = refusal(f"[{GOOD},{body}]", batch=True)
    assert (batch["status"], batch["code"]) == (400, "malformed_json")


@pytest.mark.parametrize("line", [text for text in NOT_JSON.values() if text])
def test_a_line_that_is_not_json_costs_itself(line: str) -> None:
    """The line is the frame; so it is for a last line that is cut off."""
    events = read(f"{GOOD}\n{line}\n{GOOD}\n{line}", batch=True, content_type=NDJSON)
    assert (events[0], events[2]) == (EVENT, EVENT)
    assert isinstance(events[1], Invalid)
    assert isinstance(events[3], Invalid)


@pytest.mark.parametrize("body", ["{}", "5", "null", '"x"', GOOD])
def test_a_batch_must_be_an_array(body: str) -> None:
    """JSON of another kind is told what it should be."""
    problem = refusal(body, batch=True)
    assert (problem["status"], problem["code"]) == (400, "not_an_array")


DEEP = "[" * 50_000 + "]" * 50_000
SHORT_DEEP = "[" * 8_000 + "]" * 8_000


@pytest.mark.parametrize(
    "bad", [DEEP, SHORT_DEEP, GOOD.replace('"u"', DEEP)], ids=["longer than an event", "as an event", "in a field"]
)
def test_deep_nesting_is_refused(bad: str) -> None:
    """It neither crashes nor is taken, and costs no other event."""
    (single,) = read(bad)
    assert isinstance(single, Invalid)
    line, event = read(f"{bad}\n{GOOD}", batch=True, content_type=NDJSON)
    assert isinstance(line, Invalid)
    assert event == EVENT
    event, element = read(array(GOOD, bad), batch=True)
    assert event == EVENT
    assert isinstance(element, Invalid)


def test_deep_nesting_beside_bad_text_is_refused() -> None:
    """Two faults in one event."""
    body = GOOD.encode().replace(b'"u"', b'"\xff","x":' + DEEP.encode())
    (line,) = read(body, batch=True, content_type=NDJSON)
    assert isinstance(line, Invalid)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(array(*[GOOD] * 1_001), ""), (array(*["1"] * 1_001), ""), ("1\n" * 1_001, NDJSON)],
    ids=["events", "junk", "lines"],
)
def test_too_many_events_are_refused_whole(body: str, content_type: str) -> None:
    """413 says how many there may be; they are counted no further."""
    problem = refusal(body, batch=True, content_type=content_type)
    assert (problem["status"], problem["code"]) == (413, "too_many_events")
    assert "more than 1000 events" in problem["detail"]


def test_a_body_at_the_limit_is_taken_and_one_above_is_not() -> None:
    """Bytes are counted as they are decoded."""
    assert read(GOOD.ljust(200_000)) == [EVENT]
    problem = refusal(GOOD.ljust(200_001))
    assert (problem["status"], problem["code"]) == (413, "body_too_large")


# --- Encodings ---


def zstd(data: bytes) -> bytes:
    """One frame."""
    return zstandard.ZstdCompressor().compress(data)


def zstd_without_size(data: bytes) -> bytes:
    """One frame whose head does not say how long it is."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(data) + stream.flush()


ENCODERS = {"gzip": gzip.compress, "zstd": zstd, "x-gzip": gzip.compress, "ZSTD": zstd_without_size}
BATCH = array(*[GOOD] * 1_000).encode()


@pytest.mark.parametrize("encoding", ENCODERS)
def test_encoded_bodies_are_decoded(encoding: str) -> None:
    """Whatever the case of the name."""
    assert read(ENCODERS[encoding](BATCH), batch=True, encoding=encoding) == [EVENT] * 1_000


@pytest.mark.parametrize("encoding", ENCODERS)
def test_members_one_after_the_other_are_one_body(encoding: str) -> None:
    """As `cat a.gz b.gz` makes them."""
    encode = ENCODERS[encoding]
    assert read(encode(BATCH[:99]) + encode(b"") + encode(BATCH[99:]), batch=True, encoding=encoding) == [EVENT] * 1_000


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("fault", ["truncated", "trailing", "plain", "empty", "second truncated", "many"])
def test_a_broken_encoding_is_refused(encoding: str, fault: str) -> None:
    """400, and nothing of what could be decoded is accepted."""
    whole = ENCODERS[encoding](GOOD.encode())
    broken = {
        "truncated": whole[:-1],
        "trailing": whole + b"x",
        "plain": GOOD.encode(),
        "empty": b"",
        "second truncated": whole + whole[:5],
        "many": whole + ENCODERS[encoding](b"") * encodings.MEMBERS_MAX,
    }
    problem = refusal(broken[fault], encoding=encoding)
    assert (problem["status"], problem["code"]) == (400, "malformed_encoding")


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_bomb_is_refused_before_it_is_inflated(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of zeros: 413 after a step or two."""
    steps: list[int] = []

    class Counting:
        """A decoder that tells how much it made."""

        def __init__(self, decoder: Any) -> None:
            self.decoder = decoder

        def __getattr__(self, name: str) -> Any:
            return getattr(self.decoder, name)

        def decompress(self, data: bytes) -> bytes:
            part: bytes = self.decoder.decompress(data)
            steps.append(len(part))
            return part

    known = encodings._ENCODINGS[encoding.lower()]
    counting = known._replace(new_decoder=lambda: Counting(known.new_decoder()))
    monkeypatch.setitem(encodings._ENCODINGS, encoding.lower(), counting)
    problem = refusal(ENCODERS[encoding](bytes(64 << 20)), encoding=encoding)
    assert (problem["status"], problem["code"]) == (413, "body_too_large")
    assert sum(steps) <= LIMITS.request_bytes_max + (8 << 20)


def test_a_zstd_window_above_that_of_http_is_refused() -> None:
    """A frame may not make us reserve as much memory as it likes."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    problem = refusal(stream.compress(GOOD.encode()) + stream.flush(), encoding="zstd")
    assert (problem["status"], problem["code"]) == (400, "malformed_encoding")


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip"])
def test_other_encodings_are_refused(encoding: str) -> None:
    """415 says which are known."""
    problem = refusal(GOOD, encoding=encoding)
    assert (problem["status"], problem["code"]) == (415, "unsupported_encoding")
    assert "gzip, zstd or identity" in problem["detail"]


# --- Answering ---

OCCURRED_US = 1_769_860_800_000_000  # 2026-01-31T12:00:00Z
OUT = {
    "event_id": str(ID),
    "campaign_id": 7,
    "ad_id": "a",
    "user_id": "ü",
    "event_type": "conversion",
    "cost": "0.010000",
    "ts": "2026-01-31T12:00:00.000000Z",
    "status": "accepted",
}


def submission(*verdicts: Verdict | None) -> Submission:
    """A finished one, with an event for each verdict; None is accepted."""
    made = Submission(OCCURRED_US, OCCURRED_US, lambda _: None, lambda _: None)
    for index, verdict in enumerate(verdicts):
        entry = Entry(
            made, index, CampaignId(7), ID.bytes, EventType.CONVERSION, "ü", "ü".encode(), b"a",
            OCCURRED_US, OCCURRED_US, OCCURRED_US, 0,
        )  # fmt: skip
        entry.cost_micros = 10_000
        made.entries.append(entry)
        if verdict is not None:
            made.verdicts[index] = verdict
    return made


def content(answer: Answer) -> Any:
    """The decoded body."""
    return json.loads(answer.body)


def test_an_accepted_event_is_answered_as_it_is_stored() -> None:
    """Money as exact decimals, time with microseconds and Z."""
    answer = event_answer(submission(None))
    assert answer.status == 200
    assert answer.headers == [(b"content-type", b"application/json")]
    assert content(answer) == OUT


def test_a_duplicate_is_answered_with_the_stored_event() -> None:
    """Its cost and time are the first one's."""
    stored = StoredEvent(
        EventId(ID.bytes), CampaignId(7), None, "ü", EventType.CONVERSION, Micros(1), OCCURRED_US + 1, 5
    )
    answer = event_answer(submission(Verdict(Status.DUPLICATE, event=stored)))
    assert answer.status == 200
    changed = {"ad_id": None, "cost": "0.000001", "ts": "2026-01-31T12:00:00.000001Z", "status": "duplicate"}
    assert content(answer) == OUT | changed


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.TOTAL_BUDGET, 402), (Reason.DAILY_BUDGET, 402), (Reason.INACTIVE, 402), (Reason.UNKNOWN_CAMPAIGN, 404),
        (Reason.FREQUENCY_CAPPED, 429), (Reason.PACED, 429), (Reason.INVALID, 422), (Reason.ID_REUSED, 422),
        (Reason.IN_FLIGHT, 503), (Reason.UNAVAILABLE, 503), (Reason.OVERLOADED, 503),
    ],
)  # fmt: skip
def test_a_refused_event_is_a_problem_whose_code_is_the_reason(reason: Reason, status: int) -> None:
    """429 and 503 say when to come again, the others do not."""
    answer = event_answer(submission(Verdict(Status.REJECTED, reason, "because")))
    assert answer.status == status
    headers = dict(answer.headers)
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers.get(b"retry-after") == (b"1" if status in (429, 503) else None)
    problem = content(answer)
    assert (problem["code"], problem["detail"], problem["event_id"]) == (reason.value, "because", str(ID))


def test_a_paced_event_says_when_there_is_room() -> None:
    """The seconds are the engine's."""
    answer = event_answer(submission(Verdict(Status.REJECTED, Reason.PACED, "even", 42)))
    assert (b"retry-after", b"42") in answer.headers


def test_an_invalid_event_without_an_id_is_answered_without_one() -> None:
    """There is nothing to name."""
    made = submission(Verdict(Status.REJECTED, Reason.INVALID, "user_id: is missing"))
    made.entries[0] = Invalid("user_id: is missing")
    problem = content(event_answer(made))
    assert "event_id" not in problem
    assert problem["detail"] == "user_id: is missing"


def test_a_batch_of_accepted_events_is_answered_with_counts() -> None:
    """No event needs a word."""
    answer = batch_answer(submission(None, None, None))
    assert answer.status == 200
    assert content(answer) == {
        "received": 3, "accepted": 3, "duplicate": 0, "rejected": 0, "retry": 0, "results": [],
    }  # fmt: skip


def test_an_empty_batch_is_answered_with_zeros() -> None:
    """200: nothing was asked for and nothing is missing."""
    assert content(batch_answer(submission()))["received"] == 0


def test_a_batch_lists_every_event_that_is_not_accepted() -> None:
    """In the order of the events, whatever the order of the verdicts."""
    made = submission(
        None,
        Verdict(Status.REJECTED, Reason.TOTAL_BUDGET, "no room"),
        Verdict(Status.DUPLICATE),
        Verdict(Status.REJECTED, Reason.INVALID, "user_id: is missing"),
    )
    made.entries[3] = Invalid("user_id: is missing")
    made.verdicts = dict(reversed(made.verdicts.items()))
    answer = batch_answer(made)
    assert (b"retry-after", b"1") not in answer.headers
    assert content(answer) == {
        "received": 4, "accepted": 1, "duplicate": 1, "rejected": 2, "retry": 0,
        "results": [
            {"index": 1, "event_id": str(ID), "status": "rejected", "reason": "total_budget", "detail": "no room"},
            {"index": 2, "event_id": str(ID), "status": "duplicate", "reason": None},
            {
                "index": 3, "event_id": None, "status": "rejected", "reason": "invalid",
                "detail": "user_id: is missing",
            },
        ],
    }  # fmt: skip


def test_an_event_that_was_refused_as_it_came_is_named_by_its_own_id() -> None:
    """If it has one: it was never given another."""
    full = Verdict(Status.RETRY, Reason.OVERLOADED, "full")
    made = submission(full, full)
    made.entries = [Event(7, "ü", "click", event_id=ID), Event(7, "ü", "click")]
    assert [result["event_id"] for result in content(batch_answer(made))["results"]] == [str(ID), None]
    assert content(event_answer(made))["event_id"] == str(ID)


def test_a_batch_with_events_to_retry_says_when() -> None:
    """The longest wait of those; what is rejected does not count."""
    answer = batch_answer(
        submission(
            Verdict(Status.RETRY, Reason.OVERLOADED, "full"),
            Verdict(Status.RETRY, Reason.UNAVAILABLE, "away", 3),
            Verdict(Status.REJECTED, Reason.PACED, "even", 42),
        )
    )
    assert (b"retry-after", b"3") in answer.headers
    assert content(answer)["retry"] == 2
