"""Targets and their inverses, the loss weights against their definition, and EDM against diffusers."""

import pytest
import torch
from diffusers import EDMEulerScheduler

from samplers import (
    TARGETS,
    DiscreteSchedule,
    EDMTarget,
    EpsilonTarget,
    FlowTarget,
    Level,
    Prediction,
    VTarget,
    targets_on,
)


@pytest.fixture(params=TARGETS)
def target(request):
    return TARGETS[request.param]()


def test_a_perfect_network_gives_x0_back(start, target):
    eps = start.flip(0) * 0.7
    alpha, sigma = DiscreteSchedule().at(torch.tensor([3.0, 600.0], dtype=torch.float64))
    alpha, sigma = alpha.view(2, 1, 1, 1), sigma.view(2, 1, 1, 1)
    x = alpha * start + sigma * eps
    assert torch.allclose(target.x0(target.target(start, eps, alpha, sigma), x, alpha, sigma), start)
    level = DiscreteSchedule().level(600)
    p = Prediction(level.alpha * start + level.sigma * eps, level, start)
    assert torch.allclose(p.eps, eps) and p.x_base is p.x and p.denoised is start
    assert torch.allclose(p.velocity, VTarget().target(start, eps, level.alpha, level.sigma))


def test_weights_and_error_scale_mean_the_same_for_every_target(start, target):
    """The weighted error is min(SNR, gamma) times that of x0, and (k + SNR)^-gamma times that of eps."""
    alpha, sigma = DiscreteSchedule().at(torch.linspace(0, 999, 50, dtype=torch.float64))
    snr = (alpha / sigma) ** 2
    x0, eps, wrong = start.flatten()[:50], start.flatten()[-50:], start.flatten()[10:60]
    implied_eps = (alpha * x0 + sigma * eps - alpha * wrong) / sigma  # of an output that means x0 = wrong
    error = (target.target(wrong, implied_eps, alpha, sigma) - target.target(x0, eps, alpha, sigma)) ** 2
    x0_error, eps_error = (wrong - x0) ** 2, (implied_eps - eps) ** 2
    assert torch.allclose(error, target.error_scale(alpha, sigma) / sigma**2 * x0_error, rtol=1e-7)
    assert torch.allclose(target.min_snr_weight(alpha, sigma, 5.0) * error, snr.clamp(max=5) * x0_error, rtol=1e-7)
    assert torch.allclose(target.p2_weight(alpha, sigma, 0.5, 2.0) * error, eps_error / (2 + snr) ** 0.5, rtol=1e-7)


def test_zero_terminal_snr(target):
    """alpha = 0: every weight is finite, and x0 follows from all outputs but those that need 1 / alpha."""
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert torch.isfinite(target.min_snr_weight(zero, one, 5.0)) and torch.isfinite(target.p2_weight(zero, one))
    if target.name in ("epsilon", "edm"):
        with pytest.raises(ValueError, match="at alpha = 0"):
            target.x0(one, zero, 0.0, 1.0)
    else:
        assert torch.equal(target.x0(one, zero, 0.0, 1.0), one if target.name == "sample" else -one)


def test_edm_is_that_of_diffusers():
    theirs, ours = EDMEulerScheduler(sigma_data=0.5), EDMTarget()
    x, out = torch.tensor([0.3, -2.0], dtype=torch.float64), torch.tensor([1.1, 0.2], dtype=torch.float64)
    for sigma in (0.01, 1.0, 60.0):
        assert torch.allclose(theirs.precondition_inputs(x, sigma), ours.precondition(x, 1.0, sigma))
        assert torch.allclose(theirs.precondition_outputs(x, out, sigma), ours.x0(out, x, 1.0, sigma))


def test_a_target_is_its_values():
    assert EDMTarget() == EDMTarget(0.5) != EDMTarget(1.0) and EpsilonTarget() == EpsilonTarget() != VTarget()
    assert targets_on("flow") == ("flow_prediction",) and targets_on("variance preserving")[0] == "epsilon"
    assert EDMTarget(1.0).config() == {"sigma_data": 1.0} and VTarget().config() == {"prediction_type": "v_prediction"}
    assert FlowTarget().c_noise(torch.tensor([0.0, 999.0]), 0.0, 1.0).tolist() == [1.0, 1000.0]


def test_refusals(start):
    one = torch.ones(1)
    for call in (
        lambda: EpsilonTarget().min_snr_weight(one, one, float("nan")),
        lambda: EpsilonTarget().p2_weight(one, one, -1.0),
    ):
        with pytest.raises(ValueError, match="gamma"):
            call()
    with pytest.raises(ValueError, match="sigma_data"):
        EDMTarget(0.0)
    with pytest.raises(ValueError, match="sigma = 0"):
        _ = Prediction(start, Level(0.0, 1.0, 0.0), start).eps
