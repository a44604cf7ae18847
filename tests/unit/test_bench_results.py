"""What is read out of a result: figures to compare, rates held, rows and ratios."""

from __future__ import annotations

from bench.results import Fault, Micro, figures, highest_rate, ladder
from bench.summary import by_batch, by_campaigns, by_processes, ladder_rows, rate_held, ratios, rows
from tests.unit.made_results import full_result, make_result, make_run, make_step


def test_figures_of_other_systems_bear_their_name() -> None:
    """Headrace keeps the bare name of the experiment, so both can be in one result without being mixed."""
    result = make_result(make_run("even"), make_run("even", "batcher", make_step(500.0)), micros=[Micro("pack", [1.0])])
    samples = {figure.name: figure.samples for figure in figures(result)}
    assert samples["even: throughput"] == [1_000.0]
    assert samples["batcher: even: throughput"] == [500.0]
    assert samples["micro: pack"] == [1.0]


def test_samples_are_in_the_order_of_rounds_and_void_rounds_have_none() -> None:
    """However the runs stand in the file."""
    result = make_result(
        make_run("even", "headrace", make_step(30.0), round=2),
        make_run("even", "headrace", make_step(20.0), round=1, void=True),
        make_run("even", "headrace", make_step(10.0)),
    )
    assert next(figures(result)).samples == [10.0, 30.0]


def test_a_ladder_has_the_rate_it_held_and_a_fault_the_time_to_recover() -> None:
    """Their last steps say nothing that is worth comparing."""
    steps = [make_step(rate, offered=rate) for rate in (100.0, 200.0)]
    fault = make_run("chaos", fault=Fault("a fault", 0.25, 0.5, None))
    found = {
        figure.name: figure.samples for figure in figures(make_result(make_run("ladder", "headrace", *steps), fault))
    }
    assert found == {"ladder: highest rate": [200.0], "chaos: time to recover": [0.5]}


def test_a_rate_is_held_when_it_is_fast_done_and_not_refused() -> None:
    """All three, at the highest offered rate; a closed loop offers none."""
    held = make_step(100.0, offered=100.0)
    slow = make_step(200.0, offered=200.0, p99_ms=50.0)
    undone = make_step(290.0, offered=300.0)
    refused = make_step(400.0, offered=400.0, refused=1)
    assert highest_rate(make_run("ladder", "headrace", make_step(900.0), held, slow, undone, refused)) == 100.0
    assert highest_rate(make_run("ladder", "headrace", slow, undone), p99_ms_max=51.0) == 200.0
    assert highest_rate(make_run("ladder", "headrace", undone)) is None


def test_one_offered_rate_is_no_ladder() -> None:
    """A warm-up at the same rate does not make it one; of more, the lowest is first."""
    low, high = make_step(10.0, offered=10.0), make_step(20.0, offered=20.0)
    assert ladder(make_run("open", "headrace", low, low)) == []
    assert ladder(make_run("ladder", "headrace", make_step(), high, low)) == [low, high]


def test_ratios_are_headrace_divided_by_the_other_under_the_same_experiment() -> None:
    """Medians over rounds; a ladder's is of the rates held."""
    found = {(ratio.experiment, ratio.other): ratio for ratio in ratios(full_result())}
    assert found["batches of 100", "batcher"].throughput == 3.0
    assert found["batches of 100", "batcher"].p99 == 1.0
    assert found["batches of 100", "raw COPY"].throughput == 0.25
    assert found["batches of 100", "raw COPY"].is_ceiling
    assert found["batches of 100, rate ladder", "batcher"].throughput == 1.0
    assert len(found) == 3


def test_void_runs_and_runs_that_did_nothing_have_no_ratio() -> None:
    """Neither Headrace's nor another's."""
    ours, void = make_run("even"), make_run("even", void=True)
    other, idle = make_run("even", "batcher"), make_run("even", "batcher", make_step(0.0))
    assert ratios(make_result(ours, make_run("even", "batcher", void=True))) == []
    assert ratios(make_result(void, other)) == []
    assert ratios(make_result(ours, idle)) == []


def test_a_void_round_is_left_out_of_its_row() -> None:
    """And a row that has no other shows it, and is void."""
    bad = make_run("even", "headrace", make_step(1.0), round=1, void=True)
    (row,) = rows(make_result(make_run("even"), bad))
    assert (row.events_per_second, row.void, row.void_rounds) == (1_000.0, False, 1)
    (row,) = rows(make_result(bad))
    assert (row.events_per_second, row.void) == (1.0, True)


def test_ladders_and_faults_are_no_rows() -> None:
    """They have tables of their own."""
    named = {row.experiment for row in rows(full_result())}
    assert "batches of 100, rate ladder" not in named
    assert "chaos: Redis is killed" not in named
    assert [rate_held(row) for row in ladder_rows(full_result())] == [900.0, 900.0]


def test_throughput_is_told_against_what_alone_differs() -> None:
    """Batch size, campaigns where the scenarios are alike otherwise, and processes."""
    result = full_result()
    assert [scaling.points for scaling in by_batch(result)] == [[(10, 300.0), (100, 1_500.0)]]
    assert [scaling.points for scaling in by_campaigns(result)] == [[(1, 1_000.0), (100, 1_500.0)]]
    assert [scaling.points for scaling in by_processes(result)] == [[(1, 1_500.0), (2, 1_000.0)]]
    assert by_campaigns(make_result(make_run("a", scenario="even"), make_run("b", scenario="capped"))) == []
