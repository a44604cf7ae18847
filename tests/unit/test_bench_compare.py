"""Verdicts of a comparison: none for noise, one for what has changed. Every seed is printed by a failure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from bench.__main__ import main
from bench.compare import INCOMPARABLE, MISS, SAME, SLOWER, Incomparable, compare, in_turn, status
from bench.intervals import median_interval, student_quantile
from bench.micro import median_turn
from bench.results import FORMAT, Audit, Latency, Machine, Micro, Result, Run, Step, Use, write_result

MACHINE = Machine("a processor", 2, 24.0, "a kernel")
CLEAN = Audit(0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0.0)
Noise = Callable[[random.Random], float]  # of the logarithm of a sample


def result(**fields: object) -> Result:
    """A result of the suite, changed by `fields`."""
    plain = Result(FORMAT, "c0ffee", False, "2026-01-01T12:00:00Z", 1.0, MACHINE, {"Python": "3.11"}, "quick", [])
    return msgspec.structs.replace(plain, **fields)


def micros(of: Sequence[Sequence[float]], **fields: object) -> Result:
    """A result with these samples as micros."""
    return result(micros=[Micro(f"m{number}", [*samples]) for number, samples in enumerate(of)], **fields)


def run_of(events: int, *, round_: int = 0, system: str = "headrace", audit: Audit = CLEAN, cpu: float = 1.0) -> Run:
    """One second of a run."""
    uses = [Use(role, 1, cpu, 1.0) for role in ("engine", "redis", "postgres")]
    step = Step(
        "closed", 1, 1, None, 1.0, events, events, events, 0, 0, 0, 1, 1, Latency(1.0, 1.0, 1.0, 1.0, 1.0), [], uses,
        [], False,
    )  # fmt: skip
    return Run(f"load of {system}", system, "even", round_, 0, {}, [step], audit)


def normal(rng: random.Random) -> float:
    """As between rounds on a machine that others use, too."""
    return rng.gauss(0, 0.05)


def outliers(rng: random.Random) -> float:
    """One round in ten meets something."""
    return rng.gauss(0, 0.02) + (rng.random() < 0.1) * rng.expovariate(2)


def cauchy(rng: random.Random) -> float:
    """No mean at all (but within what a float can hold)."""
    return max(-50.0, min(50.0, 0.02 * math.tan(math.pi * (rng.random() - 0.5))))


def modes(rng: random.Random) -> float:
    """The machine has two speeds, and chooses anew for each sample."""
    return rng.choice((0.0, 0.2)) + rng.gauss(0, 0.005)


def noisy(rng: random.Random, noise: Noise, rounds: int, figures: int, factor: float = 1.0) -> list[list[float]]:
    """Figures that share half of their noise in each round, as those of one run do."""
    shared = [noise(rng) for _ in range(rounds)]
    return [[factor * math.exp((common + noise(rng)) / 2) for common in shared] for _ in range(figures)]


@pytest.mark.parametrize("rounds", [5, 8, 15, 30])
@pytest.mark.parametrize("noise", [normal, outliers, cauchy, modes])
def test_like_and_like_are_seldom_told_apart(noise: Noise, rounds: int) -> None:
    """Of comparisons with twelve figures, fewer than one in a hundred has any verdict, whatever the noise looks like.

    Seeds are fixed. Of 400 comparisons, as many as 11 may have one by chance where the truth is one in a hundred.
    """
    wrong = []
    for seed in range(400):
        rng = random.Random(f"{noise.__name__} {rounds} {seed}")
        a, b = (micros(noisy(rng, noise, rounds, 12)) for _ in range(2))
        assert in_turn(a, b), "with the narrow zone"
        if any(each.verdict != "no difference seen" for each in compare(a, b)):
            wrong.append(seed)
    assert len(wrong) <= 11, f"{noise.__name__}, {rounds} rounds: seeds {wrong}"


@pytest.mark.parametrize(("factor", "verdict"), [(1.05, "slower"), (1 / 1.05, "faster"), (1.0, "no difference seen")])
def test_five_percent_are_seen_in_forty_rounds(factor: float, verdict: str) -> None:
    """When both were measured in turn, with noise of 1.5 % and some outliers: in each of 100 comparisons."""

    def noise(rng: random.Random) -> float:
        return rng.gauss(0, 0.015) + (rng.random() < 0.02) * rng.expovariate(5)

    for seed in range(100):
        rng = random.Random(seed)
        a, b = micros(noisy(rng, noise, 40, 10)), micros(noisy(rng, noise, 40, 9) + noisy(rng, noise, 40, 1, factor))
        *others, last = compare(a, b)
        assert last.verdict == verdict, f"seed {seed}: {last}"
        assert {each.verdict for each in others} == {"no difference seen"}, f"seed {seed}"


def test_five_percent_between_files_measured_apart_are_not_judged_different() -> None:
    """A machine differs from itself by as much from hour to hour; 20 % are seen."""
    a = micros([[1.0] * 30])
    for factor, verdict in ((1.05, "no difference seen"), (1.2, "slower")):
        (only,) = compare(a, micros([[factor] * 30], started_at="2026-01-01T13:00:00Z"))
        assert (only.verdict, round(only.ratio, 3)) == (verdict, factor)


def test_higher_is_better_where_it_says_so() -> None:
    """Half the throughput is slower, and costs the status; twice the CPU of a peer does not."""
    a = result(
        runs=[run_of(1_000, round_=n) for n in range(5)] + [run_of(9, round_=n, system="rows") for n in range(5)]
    )
    slow = [run_of(500, round_=n, cpu=0.5) for n in range(5)]
    peers = [run_of(9, round_=n, system="rows", cpu=2.0) for n in range(5)]
    verdicts = {each.name: each.verdict for each in compare(a, result(runs=slow + peers))}
    assert verdicts["load of headrace: throughput"] == "slower"
    assert verdicts["load of headrace: CPU of engine"] == "no difference seen"
    assert verdicts["load of headrace: p99"] == "not judged"
    assert verdicts["rows: load of rows: CPU of engine"] == "not judged"
    assert status(compare(a, result(runs=slow))) == SLOWER
    assert status(compare(result(runs=slow), a)) == SAME


def test_figures_of_one_result_only_are_left_out() -> None:
    """And so are rounds that only one has."""
    a, b = micros([[1.0] * 5, [1.0] * 5]), micros([[1.0] * 4])
    (only,) = compare(a, b)
    assert (only.name, only.rounds) == ("micro: m0", 4)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (result(machine=Machine("another", 2, 24.0, "a kernel"), micros=[Micro("m0", [1.0] * 5)]), "machine"),
        (result(suite="full", micros=[Micro("m0", [1.0] * 5)]), "suite"),
        (result(format=FORMAT + 1, micros=[Micro("m0", [1.0] * 5)]), "format"),
        (
            result(micros=[Micro("m0", [1.0] * 5)], runs=[run_of(1, audit=msgspec.structs.replace(CLEAN, lost=1))]),
            "void",
        ),
        (result(micros=[Micro("m1", [1.0] * 5)]), "no figure"),
        (micros([[1.0] * 2]), "rounds"),
    ],
    ids=["machine", "suite", "format", "void", "nothing in common", "two rounds"],
)
def test_what_says_nothing_is_refused(other: Result, why: str) -> None:
    """With its reason."""
    a = micros([[1.0] * 5])
    for first, second in ((a, other), (other, a)):
        with pytest.raises(Incomparable, match=why):
            compare(first, second)


def test_statuses_are_for_ci(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0: nothing is slower; 1: something is; 2: no comparison, be it for a file that is no result."""
    paths = {}
    for name, figure in (("a", 1.0), ("slower", 1.5)):
        paths[name] = str(tmp_path / f"{name}.json")
        write_result(micros([[figure] * 30]), Path(paths[name]))
    assert main(["compare", paths["a"], paths["a"]]) == SAME
    assert main(["compare", paths["slower"], paths["a"]]) == SAME
    assert main(["compare", paths["a"], paths["slower"]]) == SLOWER
    assert main(["compare", paths["a"], str(tmp_path / "none.json")]) == INCOMPARABLE
    told = capsys.readouterr().out
    assert "none.json is no result" in told
    assert "slower" in told


def test_the_interval_is_that_of_the_sign_test() -> None:
    """Of ten samples, the second and the ninth hold the median with 97.9 %, the first and the last with 99.8 %."""
    samples = [float(n) for n in range(10)]
    assert median_interval(samples, 0.05) == (1.0, 8.0)
    assert median_interval(samples, 0.02) == (0.0, 9.0)
    low, high = median_interval(samples, MISS / 10)
    assert low < 0.0, "ten samples can't be as sure as that: Student's interval goes beyond them"
    assert high > 9.0


@pytest.mark.parametrize(
    ("freedom", "miss", "t"),
    [(1, 0.05, 12.706), (2, 0.05, 4.303), (4, 0.05, 2.776), (5, 0.001, 6.869), (9, 0.01, 3.250)],
)
def test_quantiles_are_those_of_the_tables(freedom: int, miss: float, t: float) -> None:
    """Of Student's t, both sides together."""
    assert student_quantile(freedom, miss) == pytest.approx(t, abs=5e-4)


def test_a_round_keeps_the_turn_of_the_median_ratio() -> None:
    """What meets both samples of a turn alike is nothing; of a single side the median sample is kept."""
    assert median_turn([[9.0, 9.0], [1.0, 1.1], [1.0, 3.0]]) == [1.0, 1.1]
    assert median_turn([[9.0], [1.0], [2.0]]) == [2.0]
