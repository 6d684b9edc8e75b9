"""Targets and their inverses, and the min-SNR weights against their definition."""

import pytest
import torch
from diffusers import EDMEulerScheduler

from samplers import DiscreteSchedule, Level, Prediction, edm_scales, min_snr_weight, training_target, x0_from_output

TARGETS = ["epsilon", "v_prediction", "sample", "flow_prediction", "edm"]


@pytest.mark.parametrize("kind", TARGETS)
def test_a_perfect_network_gives_x0_back(start, kind):
    eps = start.flip(0) * 0.7
    alpha, sigma = DiscreteSchedule().at(torch.tensor([3.0, 600.0], dtype=torch.float64))
    alpha, sigma = alpha.view(2, 1, 1, 1), sigma.view(2, 1, 1, 1)
    x = alpha * start + sigma * eps
    assert torch.allclose(x0_from_output(kind, training_target(kind, start, eps, alpha, sigma), x, alpha, sigma), start)
    level = DiscreteSchedule().level(600)
    p = Prediction(level.alpha * start + level.sigma * eps, level, start)
    assert torch.allclose(p.eps, eps) and p.x_base is p.x and p.denoised is start
    assert torch.allclose(p.velocity, training_target("v_prediction", start, eps, level.alpha, level.sigma))


@pytest.mark.parametrize("kind", TARGETS)
def test_min_snr_weights_the_x0_error_alike_for_every_target(start, kind):
    alpha, sigma = DiscreteSchedule().at(torch.linspace(0, 999, 50, dtype=torch.float64))
    snr = (alpha / sigma) ** 2
    x0, eps, wrong = start.flatten()[:50], start.flatten()[-50:], start.flatten()[10:60]
    x = alpha * x0 + sigma * eps
    implied = training_target(
        kind, wrong, (x - alpha * wrong) / sigma, alpha, sigma
    )  # the output that means x0 = wrong
    error = (implied - training_target(kind, x0, eps, alpha, sigma)) ** 2
    expected = snr.clamp(max=5) * (wrong - x0) ** 2
    assert torch.allclose(min_snr_weight(kind, alpha, sigma, 5.0) * error, expected, rtol=1e-7)


def test_zero_terminal_snr():
    """alpha = 0: every weight is finite, and x0 follows from all outputs but those that need 1 / alpha."""
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert all(torch.isfinite(min_snr_weight(kind, zero, one, 5.0)) for kind in TARGETS)
    assert torch.equal(x0_from_output("v_prediction", one, zero, 0.0, 1.0), -one)
    assert torch.equal(x0_from_output("flow_prediction", one, zero, 0.0, 1.0), -one)
    for kind in ("epsilon", "edm"):
        with pytest.raises(ValueError, match="at alpha = 0"):
            x0_from_output(kind, one, zero, 0.0, 1.0)


def test_edm_scales_are_those_of_diffusers():
    theirs = EDMEulerScheduler(sigma_data=0.5)
    x, out = torch.tensor([0.3, -2.0], dtype=torch.float64), torch.tensor([1.1, 0.2], dtype=torch.float64)
    for sigma in (0.01, 1.0, 60.0):
        _, _, c_in = edm_scales(1.0, sigma)
        assert torch.allclose(theirs.precondition_inputs(x, sigma), c_in * x)
        assert torch.allclose(theirs.precondition_outputs(x, out, sigma), x0_from_output("edm", out, x, 1.0, sigma))


def test_refusals(start):
    with pytest.raises(ValueError, match="must be one of epsilon"):
        training_target("eps", start, start, 1.0, 0.0)
    with pytest.raises(ValueError, match="gamma"):
        min_snr_weight("epsilon", torch.ones(1), torch.ones(1), float("nan"))
    with pytest.raises(ValueError, match="sigma = 0"):
        _ = Prediction(start, Level(0.0, 1.0, 0.0), start).eps
