"""Fréchet distances against closed forms of known Gaussians and against torchmetrics, and their intervals."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from letstalk_core.errors import InputError
from letstalk_core.evaluation.frechet import frechet_distance, frechet_interval


def exact_sample(mean, spreads, rows=40):
    """Features whose mean and diagonal covariance are exactly what is asked for."""
    raw = np.random.default_rng(0).standard_normal((rows, len(mean)))
    whitened = np.linalg.qr(raw - raw.mean(0))[0] * np.sqrt(rows - 1)
    return whitened * np.sqrt(spreads) + mean


def test_gaussians_whose_distance_is_known():
    """Diagonal covariances commute: |difference of means|^2 + the sum of (root a - root b)^2."""
    a, b = exact_sample([0.0, 1.0, 2.0], [4.0, 1.0, 0.25]), exact_sample([3.0, 1.0, 0.0], [1.0, 1.0, 4.0])
    assert frechet_distance(a, b) == pytest.approx((9 + 0 + 4) + (1 + 0 + 2.25), rel=1e-10)


def test_a_turned_gaussian_whose_distance_is_known():
    """Of A = diag(4, 1) and B = A turned by 90 degrees the root's trace is 2 + 2, not that of the sorted spreads."""
    a, b = exact_sample([0.0, 0.0], [4.0, 1.0]), exact_sample([0.0, 0.0], [1.0, 4.0])
    assert frechet_distance(a, b) == pytest.approx(5 + 5 - 2 * 4, rel=1e-10)


@pytest.mark.parametrize("rows", [12, 300])  # fewer than features, and more
def test_it_equals_that_of_torchmetrics(rows):
    class Given(torch.nn.Module):
        num_features = 24

        def forward(self, images):
            return images.flatten(1)

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((rows, 24)) @ rng.standard_normal((24, 24)), rng.standard_normal((rows + 5, 24)) + 0.5
    metric = FrechetInceptionDistance(Given(), input_img_size=(1, 1, 24), normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(b)[:, None, None], real=True)
    metric.update(torch.from_numpy(a)[:, None, None], real=False)
    assert frechet_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_identical_sets_give_nothing_and_single_ones_no_answer():
    a = np.random.default_rng(2).standard_normal((50, 300)).astype(np.float32)
    assert frechet_distance(a, a.copy()) < 1e-9
    with pytest.raises(InputError, match="give more clips"):
        frechet_distance(a[:1], a)


def test_an_interval_holds_the_distance_and_narrows_with_more_clips():
    rng = np.random.default_rng(3)
    a, b = ([rng.standard_normal((10, 4)) + shift + rng.standard_normal(4) for _ in range(80)] for shift in (0, 1))
    value = frechet_distance(np.concatenate(a), np.concatenate(b))
    low, high = frechet_interval(a, b)
    few_low, few_high = frechet_interval(a[:8], b[:8])
    assert 0 < low < value < high and high - low < few_high - few_low
    assert frechet_interval(a, b) == [low, high]
