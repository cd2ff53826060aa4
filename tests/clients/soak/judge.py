"""Whether a series of samples is flat: its least-squares slope is within its error of 0.

One sample stands for one cycle: a fault, its end, and the quiet time after it. So what differs between two samples has been
brought about by a fault in between, and not by the moment before, as with samples of one second. What is left of dependence
between neighbours makes the error larger: by the factor sqrt((1 + r) / (1 - r)), r being the residuals' correlation at lag 1.

The error is the half of the 95 % confidence interval, taken for all series of a run together (Bonferroni), because one
series that looks like a leak by chance fails the run. A slope that is greater counts all the same only if the series has
changed by more than a stated bound over the whole run: less cannot be a leak that anybody meets.
"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, fmean

CONFIDENCE = 0.95
FEWEST = 6  # samples: the error of a line through fewer says little
LARGEST_CORRELATION = 0.9


@dataclass(frozen=True)
class Verdict:
    first: float
    last: float
    slope: float  # per hour
    error: float  # per hour
    change: float  # that of the line, over the whole run
    is_flat: bool


def quantile(probability, freedom):
    """Of Student's t: Cornish and Fisher's expansion, right to 1 % from four degrees of freedom on (Abramowitz and Stegun
    26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    return (z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
            + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4))


def judge(times, values, bound, together=1):
    """`times` in seconds; `bound`: how much a series may change over the whole run in any case; `together`: how many series
    are judged. None if there are too few samples."""
    count = len(values)
    if count < FEWEST:
        return None
    middle, mean = fmean(times), fmean(values)
    spread = sum((time - middle) ** 2 for time in times)
    slope = sum((time - middle) * (value - mean) for time, value in zip(times, values)) / spread
    residuals = [value - mean - slope * (time - middle) for time, value in zip(times, values)]
    squares = sum(residual**2 for residual in residuals)
    correlation = sum(one * other for one, other in zip(residuals, residuals[1:])) / squares if squares else 0
    correlation = min(max(correlation, 0), LARGEST_CORRELATION)
    deviation = sqrt(squares / (count - 2) / spread) * sqrt((1 + correlation) / (1 - correlation))
    error = deviation * quantile(1 - (1 - CONFIDENCE) / 2 / together, count - 2)
    change = slope * (times[-1] - times[0])
    return Verdict(values[0], values[-1], slope * 3600, error * 3600, change, abs(slope) <= error or abs(change) <= bound)
