"""How far a median of paired samples can be trusted: an interval that holds whatever the noise looks like.

Owns the arithmetic of it. Pure: knows no figure and no result.

The samples are logarithms of ratios, one a round. If nothing has changed, each of them could as well have had the other
sign. The interval holds every median that this **sign-flip** test lets stand (Conover, Practical Nonparametric
Statistics, 3rd ed., 1999, section 3.2): all 2^n flips are counted in closed form rather than some of them drawn, so
there is no seed. It lies between two of the sorted samples and assumes no shape of the noise. The percentile bootstrap
of a median has nearly the same ends (Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7,
1979, section 3), but only nearly: with few samples it is too narrow, and no resampling at all can be surer than
2 / 2^n. Where that is not sure enough, the interval is Student's (Biometrika 6, 1908) about the mean, and never less
than all that was seen; that does assume a shape, which is the price of few rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

SAMPLES_MIN: Final = 3  # with two, Student's interval is as good as endless


def median_interval(samples: Sequence[float], miss: float) -> tuple[float, float]:
    """Where the true median lies, but for a chance of `miss`. Needs `SAMPLES_MIN` samples."""
    assert len(samples) >= SAMPLES_MIN
    ordered = sorted(samples)
    cut = _cut(len(ordered), miss)
    if cut >= 0:
        return ordered[cut], ordered[-1 - cut]
    middle = statistics.fmean(ordered)
    reach = student_quantile(len(ordered) - 1, miss) * statistics.stdev(ordered) / math.sqrt(len(ordered))
    return min(ordered[0], middle - reach), max(ordered[-1], middle + reach)


def _cut(count: int, miss: float) -> int:
    """How many samples may be left out at each end; -1: even all of them do not hold it surely enough."""
    below, cut = 0.0, -1
    for k in range(count // 2):
        below += math.comb(count, k) / 2**count
        if 2 * below > miss:
            break
        cut = k
    return cut


def student_quantile(freedom: int, miss: float) -> float:
    """The value that Student's t passes, to one side or the other, with the chance `miss`."""
    low, high = 0.0, 1.0
    while _student_outside(freedom, high) > miss:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_outside(freedom, middle) > miss else (low, middle)
    return high


def _student_outside(freedom: int, t: float) -> float:
    """Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4: a finite sum in the angle."""
    angle = math.atan(t / math.sqrt(freedom))
    square = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= square * k / (k + 1)
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 1 - inside
