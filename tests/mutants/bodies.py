"""Mutants of what is read from a body and a head: nothing holds the loop, nothing is ignored, nothing is guessed."""

from __future__ import annotations

from tests.mutants.engine import ARRIVAL, ARRIVING, one

BODIES = "api/bodies.py"
INTAKE = "api/intake.py"
SLICES = "tests/unit/test_slices.py"
SERVING = "tests/unit/test_intake.py"
REFUSED = "tests/unit/test_refused_never_ignored.py"

MUTANTS = [
    one(
        "elements-are-counted-as-they-come",
        "A batch of two million numbers makes no two million objects.",
        BODIES,
        "            if len(events) > limits.request_events_max:\n                raise too_many_events(limits)\n",
        "",
        f"{SLICES}::test_elements_are_counted_before_they_are_made",
    ),
    one(
        "an-array-is-read-in-slices",
        "Bad events don't hold the loop.",
        BODIES,
        "            if work >= SLICE_WORK:\n                yield\n",
        "            if False:\n                yield\n",
        f"{SLICES}::test_no_slice_does_more_than_its_share",
    ),
    one(
        "an-encoded-body-is-decoded-in-slices",
        "A few KB that hold 4 MiB don't hold the loop.",
        "api/encodings.py",
        "                    yield\n",
        "                    pass\n",
        f"{SLICES}::test_no_slice_decodes_more_than_a_mebibyte_and_a_step",
    ),
    one(
        "brackets-are-bounded",
        "Lists within events don't cost seconds.",
        BODIES,
        "            if steps > STEPS_MAX:\n",
        "            if False:\n",
        f"{SLICES}::test_brackets_within_elements_are_bounded",
    ),
    one(
        "what-is-no-json-is-refused-whole",
        "Nothing of a body is accepted whose frame can't be trusted.",
        BODIES,
        "        check_json(raw)\n",
        "",
        f"{SLICES}::test_what_is_no_array_is_refused_whole",
    ),
    one(
        "long-bodies-are-bounded",
        "What waits to be read fits into the memory that is said.",
        "api/slicing.py",
        "        if self._bytes + size > self._bytes_max:\n",
        "        if False:\n",
        f"{SLICES}::test_too_many_long_bodies_are_refused",
    ),
    one(
        "a-long-body-is-a-boundary",
        "A fault of one request ends its connection, not the intake.",
        INTAKE,
        """        except Exception as error:  # noqa: BLE001 - boundary: a fault of one request ends its connection
            _log.error("a body""",
        """        except OSError as error:
            _log.error("a body""",
        f"{SERVING}::test_a_fault_of_a_long_body_ends_its_connection_and_no_other",
    ),
    one(
        "nobody-waits-for-a-closed-connection",
        "What nobody will hear of is not submitted.",
        INTAKE,
        "lambda: connection.closed)",
        "lambda: False)",
        f"{SERVING}::test_a_long_body_whose_connection_is_closed_is_not_submitted",
    ),
    one(
        "the-intake-ignores-no-parameter",
        "An event that was sent to be tried is not charged.",
        INTAKE,
        "        if head.ignored is not None:\n",
        "        if False:\n",
        f"{REFUSED}::test_the_intake_answers_as_the_api_does",
    ),
    one(
        "the-api-ignores-no-condition",
        "A change is not made whose condition was not looked at.",
        "api/app.py",
        "            _refuse_unread(call)\n",
        "            pass\n",
        f"{REFUSED}::test_a_condition_that_is_not_looked_at_is_refused",
    ),
    one(
        "no-event-is-nil",
        "Events of a sender that makes no ids are not duplicates of each other.",
        ARRIVAL,
        "        if sent_id in _NO_IDS:\n",
        "        if False:\n",
        f"{ARRIVING}::test_what_types_cannot_say_is_refused_with_the_field",
    ),
]
