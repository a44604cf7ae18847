"""The table of targets: how a figure is read out of a result, and that the suite makes what the table needs."""

from __future__ import annotations

import msgspec
import pytest

from bench.report import benchmarks_page
from bench.results import Latency, Result, Run, figures
from bench.suite import FOR_TARGETS, target_items
from bench.targets import (
    BATCHES,
    BATCHES_10,
    COLUMNS,
    EMPTY,
    IDLE,
    IDLE_BYTES,
    LONE,
    MANY,
    OVERLOAD,
    SUITE,
    TARGETS,
    Met,
    Reached,
    lines,
    needed,
    reached,
)
from tests.unit.made_results import make_result, make_run, make_step


def of(figure: str, *runs: Run) -> Reached:
    """What a result with these runs says of the only target whose figure starts so."""
    (found,) = [each for each in reached(targets_of(*runs)) if each.target.figure.startswith(figure)]
    return found


def targets_of(*runs: Run) -> Result:
    """A result that was made for the table."""
    return make_result(*runs, suite=SUITE)


def batches(rate: float, system: str = "headrace", *, experiment: str = BATCHES, round: int = 0) -> Run:  # noqa: A002
    """One round of one system."""
    return make_run(experiment, system, make_step(rate), round=round)


def test_a_ratio_is_taken_within_each_round() -> None:
    """Not of the medians: what the machine did meanwhile met both."""
    found = of(
        "batches of 10 /",
        batches(1_000.0), batches(400.0, experiment=BATCHES_10),
        batches(100.0, round=1), batches(30.0, experiment=BATCHES_10, round=1),
        batches(10.0, round=2), batches(2.0, experiment=BATCHES_10, round=2),
    )  # fmt: skip
    assert found.samples == [0.4, 0.3, 0.2]
    assert found.median == 0.3


def test_against_several_peers_the_best_one_counts() -> None:
    """In each round by itself."""
    rounds = [(100.0, 50.0), (20.0, 40.0)]
    runs = [batches(400.0, round=round_) for round_ in range(2)]
    for round_, (batcher, alone) in enumerate(rounds):
        runs += [batches(batcher, "batcher", round=round_), batches(alone, "postgres alone", round=round_)]
    (found, *_) = [each for each in reached(targets_of(*runs)) if each.target.figure == "the same / the best peer"]
    assert found.samples == [4.0, 10.0]


def test_a_round_that_lacks_a_part_or_is_void_does_not_count() -> None:
    """And without any round, nothing is known."""
    many = batches(500.0, experiment=MANY)
    void = make_run(BATCHES, "headrace", make_step(1_000.0), void=True)
    for runs in ([many], [many, void]):
        found = of("10,000 campaigns", *runs)
        assert (found.samples, found.met) == ([], Met.UNKNOWN)


@pytest.mark.parametrize(("p50_ms", "met"), [(0.9, Met.AIM), (1.2, Met.YES), (1.6, Met.NO)])
def test_of_a_latency_less_is_better(p50_ms: float, met: Met) -> None:
    """And of memory, and of time."""
    step = make_step(latency=Latency(p50_ms, 9, 9, 9, 9))
    assert of("a lone connection", make_run(LONE, "headrace", step)).met is met


def test_of_a_ratio_more_is_better() -> None:
    """The aim, at least, or neither."""
    met = [of("10,000", batches(rate, experiment=MANY), batches(100.0)).met for rate in (80.0, 60.0, 40.0)]
    assert met == [Met.AIM, Met.YES, Met.NO]


def test_an_overload_is_compared_with_what_its_own_run_reached() -> None:
    """And where nothing was refused, nothing is known of refusals."""
    steps = [make_step(100.0), make_step(200.0), make_step(150.0, offered=400.0)]
    runs = {each.target.figure: each for each in reached(targets_of(make_run(OVERLOAD, "headrace", *steps)))}
    assert runs["at twice the highest rate, served / highest"].samples == [0.75]
    assert runs["the same, p99 of a refusal"].met is Met.UNKNOWN
    refused = msgspec.structs.replace(steps[2], refusal=Latency(1, 2, 3, 4, 5))
    runs = {
        each.target.figure: each
        for each in reached(targets_of(make_run(OVERLOAD, "headrace", steps[0], steps[1], refused)))
    }
    assert runs["the same, p99 of a refusal"].samples == [3]


def test_a_measure_needs_no_step_and_is_compared_too() -> None:
    """It is a figure of the result, of which less is better."""
    result = targets_of(msgspec.structs.replace(make_run(IDLE, measures={IDLE_BYTES: 3_000.0}), steps=[]))
    (found,) = [each for each in reached(result) if each.samples]
    assert (found.samples, found.met) == ([3_000.0], Met.YES)
    (figure,) = figures(result)
    assert (figure.name, figure.better, figure.samples) == (f"{IDLE}: {IDLE_BYTES}", "lower", [3_000.0])


def test_where_the_sender_was_the_limit_it_is_told() -> None:
    """With the system that could have done more."""
    limited = make_run(BATCHES, "raw COPY", make_step(200.0, sender_was_limit=True), audit=None)
    (line,) = [line for line in lines(targets_of(batches(100.0), limited)) if line[0] == "the same / raw COPY"]
    assert line == [
        "the same / raw COPY", "0.280", "0.400", "0.500", "0.500", "0.500", "aim; the sender was the limit of raw COPY",
    ]  # fmt: skip


def test_the_document_has_the_table() -> None:
    """Every line of it; other suites have none."""
    page = benchmarks_page(targets_of(batches(100.0)))
    assert f"| {' | '.join(COLUMNS)} |" in page
    assert all(target.figure in page for target in TARGETS)
    assert "## Targets" not in benchmarks_page(make_result(batches(100.0)))


def test_the_document_takes_the_table_from_a_result_of_its_own() -> None:
    """And says where that one was measured; all else is the other's."""
    targets = msgspec.structs.replace(targets_of(batches(100.0)), commit="fedcba9876543210")
    page = benchmarks_page(make_result(make_run("scenario hot")), targets)
    assert all(target.figure in page for target in TARGETS)
    assert page.index("0123456789ab") < page.index("fedcba987654")
    assert "scenario hot" in page
    assert f"| {BATCHES} |" not in page


def test_the_suite_makes_what_the_table_needs_and_nothing_else() -> None:
    """The run of the full table brings the empty one with it."""
    made = {(item.experiment, item.system) for item in target_items(FOR_TARGETS)}
    assert made | {(EMPTY, "headrace")} == needed()


def test_what_is_compared_runs_in_turn() -> None:
    """Every other round the other way round."""
    of_batches = [item for item in target_items(FOR_TARGETS) if item.experiment == BATCHES]
    systems = [[item.system for item in of_batches if item.round == round_] for round_ in range(2)]
    assert systems[0] == systems[1][::-1]
    assert len(systems[0]) > 1
