"""The judge of the soak: it finds what leaks and leaves alone what only varies."""

import random

from judge import FEWEST, judge, quantile

TIMES = [13.0 * turn for turn in range(36)]


def series(seed, leak=0.0, noise=1.0, correlation=0.0):
    """A value a cycle: what leaks in each, and noise that may hang together."""
    random.seed(seed)
    values, last = [], 0.0
    for turn in range(len(TIMES)):
        last = correlation * last + random.gauss(0, noise)
        values.append(100 + leak * turn + last)
    return values


def flat(values, bound=0.0, together=6):
    return judge(TIMES, values, bound, together).is_flat


def test_a_series_that_never_changes_is_flat():
    verdict = judge(TIMES, [7.0] * len(TIMES), 0.0)
    assert (verdict.is_flat, verdict.slope, verdict.error) == (True, 0, 0)


def test_a_leak_of_one_in_each_cycle_is_found_in_noise_as_large():
    assert not any(flat(series(seed, leak=1.0)) for seed in range(200))


def test_a_leak_in_one_of_nine_cycles_is_found():
    for seed in range(200):
        values = [value + turn // 9 for turn, value in enumerate(series(seed, noise=0.3))]
        assert not flat(values)


def test_what_falls_is_not_flat_either():
    assert not flat(series(1, leak=-1.0))


def test_noise_alone_passes():
    passed = sum(flat(series(seed)) for seed in range(1000))
    assert passed >= 985, passed  # six of them together pass in 95 of 100 runs


def test_noise_that_hangs_together_passes_most_often():
    passed = sum(flat(series(seed, correlation=0.5)) for seed in range(1000))
    assert passed >= 950, passed


def test_a_step_in_the_middle_is_found():
    values = [value + 5 * (turn >= len(TIMES) // 2) for turn, value in enumerate(series(3))]
    assert not flat(values)


def test_a_change_below_the_bound_counts_as_none():
    values = [100 + 0.01 * turn for turn in range(len(TIMES))]
    assert not flat(values, bound=0.3)
    assert flat(values, bound=0.4)


def test_a_few_samples_are_not_judged():
    assert judge(TIMES[:FEWEST - 1], [1.0] * (FEWEST - 1), 0.0) is None


def test_the_quantiles_are_those_of_the_tables():
    for probability, freedom, wanted in ((0.975, 4, 2.776), (0.975, 10, 2.228), (0.975, 30, 2.042), (0.995, 5, 4.032),
                                         (0.995, 34, 2.728)):
        assert abs(quantile(probability, freedom) / wanted - 1) < 0.01
