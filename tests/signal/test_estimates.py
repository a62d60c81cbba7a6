"""The estimates on Gaussian gradients whose moments are known."""

from __future__ import annotations

import pytest
import torch

from tempflow_fast.signal.estimates import Estimate, GradientMoments, iterations_to_distinguish

NUM_ELEMENTS, NUM_ITERATIONS = 300, 60
MEANS = 0.2 * torch.randn(2, NUM_ELEMENTS, generator=torch.Generator().manual_seed(0))
SHARED = 0.5
"""Share of the noise's variance that both sources have in common."""


def measured(seed=1, num_iterations=NUM_ITERATIONS):
    """Two sources of unit variance per element."""
    rng = torch.Generator().manual_seed(seed)
    common, own = (
        torch.randn(1, num_iterations, NUM_ELEMENTS, generator=rng),
        torch.randn(2, num_iterations, NUM_ELEMENTS, generator=rng),
    )
    return GradientMoments(MEANS[:, None] + SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own)


TRUE = MEANS @ MEANS.T
STATISTICS = {
    "signal": (lambda m: m.signal[..., 0, 0], TRUE[0, 0]),
    "signal of a pair": (lambda m: m.signal[..., 0, 1], TRUE[0, 1]),
    "variance": (lambda m: m.covariance[..., 1, 1], torch.tensor(float(NUM_ELEMENTS))),
    "snr2": (lambda m: m.snr2(1), TRUE[1, 1] / NUM_ELEMENTS),
    "cosine": (lambda m: m.cosine(0, 1), TRUE[0, 1] / (TRUE[0, 0] * TRUE[1, 1]).sqrt()),
    "correlation": (lambda m: m.correlation(0, 1), torch.tensor(SHARED)),
    "sum": (lambda m: m.combined(torch.ones(1, 2)).signal[..., 0, 0], TRUE.sum()),
    "effective": (lambda m: m.effective_snr2(0, 1), TRUE[0, 1] ** 2 / TRUE[1, 1] / NUM_ELEMENTS),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_an_estimate_is_within_its_error_of_the_truth(name):
    statistic, truth = STATISTICS[name]
    estimate = measured().estimate(statistic)
    assert abs(estimate.value - truth.item()) < 3.5 * estimate.error


@pytest.mark.parametrize("name", ["signal", "variance", "snr2", "correlation"])
def test_the_error_is_the_spread_of_repeated_measurements(name):
    statistic, _ = STATISTICS[name]
    estimates = [measured(seed).estimate(statistic) for seed in range(60)]
    spread = torch.tensor([each.value for each in estimates]).std().item()
    told = sum(each.error for each in estimates) / len(estimates)
    assert told == pytest.approx(spread, rel=0.35)


def test_the_signal_is_unbiased_and_can_come_out_negative():
    noise = torch.randn(1, 400, 4, 50, generator=torch.Generator().manual_seed(2))
    values = torch.tensor([GradientMoments(noise[:, i]).all.signal.item() for i in range(400)])
    assert values.mean().abs() < 4 * values.std() / 20
    assert (values < 0).any()


def test_a_ratio_of_sources_that_share_noise_is_known_better_than_its_parts():
    moments = measured()
    doubled = moments.ratio(lambda m: 2 * m.snr2(0), lambda m: m.snr2(0))
    assert doubled.value == pytest.approx(2)
    assert doubled.error < 1e-9


def test_three_iterations_are_needed():
    with pytest.raises(ValueError, match="GradientMoments: gradients must be of 3 or more iterations, got 2"):
        GradientMoments(torch.randn(1, 2, 5))


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (Estimate(2.0, 0.5), 20),
        (Estimate(1.5, 0.5), 80),
        (Estimate(0.5, 0.5), 80),
        (Estimate(1.0, 0.1), None),
        (Estimate(float("nan"), 0.1), None),
    ],
)
def test_iterations_to_distinguish(ratio, expected):
    """Two errors must be at most the distance from 1, and an error falls with the root of the iterations."""
    assert iterations_to_distinguish(ratio, 20) == expected
