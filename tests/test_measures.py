"""The measures say what they should of frames made for the purpose."""

import numpy as np
import pytest

from letstalk_core.evaluation import measures


def test_slope_is_how_far_one_moves_with_another():
    b = np.random.default_rng(0).random(200)
    assert measures.slope(0.5 * b + 3, b) == pytest.approx(0.5) and measures.slope(b, np.ones(200)) == 0
    assert measures.slope(b, b) == pytest.approx(1)


def test_correlation_at_lags():
    signal = np.random.default_rng(0).standard_normal(200).cumsum()
    assert measures.correlation(signal, 3 * signal + 1) > 0.999
    assert measures.correlation(signal, np.ones(200)) == 0
    best, lag = measures.lagged_correlation(signal[3:], signal[:-3])
    assert lag == -3 and best > 0.999


def test_a_jump_at_the_borders_is_seen():
    steady = np.arange(64, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    assert abs(measures.border_jump(steady, 16) - 1) < 1e-6
    jumping = steady.copy()
    for border in (16, 32, 48):
        jumping[border:] += 9
    assert abs(measures.border_jump(jumping, 16) - 10) < 1e-6


def test_an_interval_holds_the_median_and_narrows_with_more_values():
    values = np.random.default_rng(1).normal(3, 1, 400)
    (low, high), (few_low, few_high) = measures.bootstrap_interval(values), measures.bootstrap_interval(values[:20])
    assert low < np.median(values) < high and high - low < 0.35 < few_high - few_low
    assert measures.bootstrap_interval(np.array([2.0])) == [2.0, 2.0]


def test_blinks_are_counted_once():
    closure = np.zeros(25 * 60)
    for start in (100, 400, 900):
        closure[start : start + 4] = 0.9
    assert measures.blinks_per_minute(closure, 25) == 3


def test_closed_lips_are_counted_where_they_should_be_closed():
    opening = np.array([0.0, 0.05, 0.5, 0.0, 0.9])
    closed = np.array([True, True, True, False, False])
    assert measures.closed_share(opening, closed, 0.0) == (2, 3)
    assert measures.closed_share(opening + 0.1, closed, 0.0) == (0, 3)
    assert measures.closed_share(opening + 0.1, closed, 0.1) == (2, 3)


def test_psnr_and_envelope():
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 51, np.uint8)
    assert abs(measures.masked_psnr(black, grey, np.ones((4, 4), bool)) - 13.979) < 0.01
    loud = np.concatenate([np.zeros(640), np.ones(640) * 0.5]).astype(np.float32)
    assert np.allclose(measures.envelope(loud, 16000, 2, 25), [0, 0.5])
