"""Mutants of what stands between a peer and the engine: boundaries, order of answers, the cap and the clocks."""

from __future__ import annotations

from tests.mutants.engine import one

CONNECTION = "api/intake_connection.py"
CONNECTIONS = "api/connections.py"
FRAMEWORK = "api/framework.py"
LISTENER = "api/listener.py"
HOSTILE = "tests/unit/test_hostile.py"
API = "tests/unit/test_api_listener.py"
BREAKS = f"{HOSTILE}::test_what_one_connection_breaks_ends_that_one"
TRUE = f"{HOSTILE}::test_every_answer_is_true"
DRAIN = f"{HOSTILE}::test_nobody_holds_up_a_drain"

MUTANTS = [
    one(
        "a-connection-has-a-boundary",
        "A fault of one connection ends that one, not the engine.",
        CONNECTIONS,
        "        except Exception as error:  # noqa: BLE001 - boundary: a fault of one connection ends that one\n"
        "            self._fail(connection, error)\n            return 0\n",
        "        except ZeroDivisionError as error:\n            self._fail(connection, error)\n            return 0\n",
        BREAKS,
    ),
    one(
        "a-request-has-a-boundary",
        "The same, of what the framework does with it.",
        LISTENER,
        "except* Exception as faults:",
        "except* ZeroDivisionError as faults:",
        BREAKS,
    ),
    one(
        "an-answer-has-a-boundary",
        "An answer that could not be written ends its connection: nothing is taken for its rest.",
        FRAMEWORK,
        "        except Exception as error:  # noqa: BLE001 - boundary: see above\n",
        "        except ZeroDivisionError as error:\n",
        BREAKS,
    ),
    one(
        "behind-a-last-request-is-nothing",
        "What comes behind a last request replaces no answer, and is no request.",
        CONNECTION,
        "            if not request.head.keep_alive or drained:\n",
        "            if drained:\n",
        TRUE,
        second=True,  # the reader ends there, too: "nothing-behind-a-last-request"
    ),
    one(
        "one-read-makes-no-thousands-of-requests",
        "What one connection pipelines is bounded, however small its requests are.",
        "api/intake_connection.py",
        "        reader.room = self._loop.settings.pipelined_requests_max - len(self._exchanges)\n",
        "        reader.room = 1_000_000\n",
        "tests/unit/test_intake.py::test_one_read_makes_no_more_requests_than_may_be_pipelined",
    ),
    one(
        "a-large-request-is-handed-on-in-steps",
        "A request of 5,000 events does not hold the loop for 100 ms.",
        "engine/engine.py",
        "HANDED_ON_MAX: Final = 1_000",
        "HANDED_ON_MAX: Final = 1_000_000",
        "tests/unit/test_handing_on.py",
    ),
    one(
        "a-last-answer-lingers",
        "A late byte does not destroy the answer of what was taken.",
        CONNECTION,
        "self._lingers or not self._loop.draining or self._has_unread()",
        "self._lingers",
        f"{HOSTILE}::test_a_late_byte_destroys_no_answer",
    ),
    one(
        "one-at-a-time",
        "A request is answered after those before it on its connection.",
        LISTENER,
        "        queue = self._queues.get(exchange.connection)\n",
        "        queue = None\n",
        f"{API}::test_requests_of_one_connection_are_answered_one_by_one",
    ),
    one(
        "an-incomplete-answer-ends-its-connection",
        "The next answer is not taken for the rest of this one.",
        FRAMEWORK,
        "if self._left or (",
        "if (",
        f"{API}::test_an_answer_that_stays_incomplete_ends_its_connection",
    ),
    one(
        "a-broken-stream-ends-its-connection",
        "The same, of an answer whose application has died.",
        FRAMEWORK,
        "        if exchange.answer is None:\n",
        "        if False:\n",
        f"{API}::test_an_answer_that_stays_incomplete_ends_its_connection",
    ),
    one(
        "bodies-are-counted-to-their-answers",
        "Whole bodies that wait at the api are bounded together.",
        LISTENER,
        "        if self.body_bytes > self.settings.intake_bytes_max:\n",
        "        if False:\n",
        f"{API}::test_whole_bodies_that_wait_are_bounded_together",
    ),
    one(
        "a-drain-waits-for-no-timeout",
        "A half request does not hold up a drain.",
        CONNECTION,
        "if not patient and self._waiting in (READER, REQUEST):",
        "if False:",
        DRAIN,
    ),
    one(
        "readiness-is-one-check",
        "A packet full of questions for readiness is one check, not a task for each.",
        "api/intake.py",
        "                if len(self._readiness_asked) == 1:\n",
        "                if True:\n",
        "tests/unit/test_intake.py::test_all_who_ask_for_readiness_at_once_are_answered_by_one_check",
    ),
    one(
        "a-probe-serves-all-who-waited-for-it",
        "Who waited for a probe does not ask anew because many had their turn before.",
        "engine/probes.py",
        "            if self._answers > answers:\n                return\n",
        "",
        "tests/unit/test_refusals.py::test_who_is_served_late_by_a_probe_does_not_ask_anew",
    ),
    one(
        "those-that-linger-are-bounded",
        "Refused senders do not use up the descriptors.",
        CONNECTIONS,
        "            next(iter(self._lingering)).close()\n",
        "            pass\n",
        f"{HOSTILE}::test_those_that_linger_are_bounded",
    ),
]
