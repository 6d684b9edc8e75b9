"""The laws of guidance, on a mixture of two Gaussians whose scores are exact."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import ndtri

from samplers import (
    Classifier,
    ClassifierFree,
    DiscreteSchedule,
    Level,
    SampleNoise,
    ddim,
    ddpm,
    dpmpp_2m,
    guide,
    make_levels,
)

LEVEL = DiscreteSchedule().level(400)
X = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_both_forms_give_the_score_of_p_x_times_p_y_given_x_to_the_scale(mixture, scale):
    for t in (5, 400, 900):
        level = DiscreteSchedule().level(t)
        score = mixture.guided_score(X, level, 0, scale)
        by_classifier = guide(mixture.evaluate(0, unconditional_base=True), [Classifier(scale)])(X, level)
        by_cfg = guide(mixture.evaluate(0), [ClassifierFree(scale)])(X, level)
        for p in (by_classifier, by_cfg):
            assert (p.eps + level.sigma * score).abs().max() < 1e-10
            assert (p.denoised - (X + level.sigma**2 * score) / level.alpha).abs().max() < 1e-10
        assert (by_classifier.denoised - by_cfg.denoised).abs().max() < 1e-10


def test_scale_1_and_scale_0_are_exact_and_scale_1_costs_nothing(mixture):
    evaluate = mixture.evaluate()
    cond, uncond = mixture.class_x0(X, LEVEL, 0), mixture.x0(X, LEVEL)
    assert torch.equal(guide(evaluate, [ClassifierFree(1)])(X, LEVEL).x0, cond)
    assert torch.equal(guide(evaluate, [ClassifierFree(1.0), Classifier(0.0)])(X, LEVEL).denoised, cond)
    assert evaluate.calls == [("cond",), ("cond",)]
    assert torch.equal(guide(evaluate, [ClassifierFree(0)])(X, LEVEL).x0, uncond)
    assert guide(evaluate)(X, LEVEL).x0.equal(cond)


def test_negative_equal_to_positive_is_the_conditional_model(mixture):
    def evaluate(x, level, branches):  # a negative condition stands in the place of the null condition
        return {name: mixture.evaluate(1)(x, level, ("cond",))["cond"] for name in branches}

    assert torch.equal(guide(evaluate, [ClassifierFree(7.5)])(X, LEVEL).x0, mixture.class_x0(X, LEVEL, 1))


def test_linear_guidances_commute_and_add_up(mixture):
    parts = [ClassifierFree(3.0), ClassifierFree(1.7, against="weak"), Classifier(0.8)]
    forward, backward = (guide(mixture.evaluate(), order)(X, LEVEL) for order in (parts, parts[::-1]))
    assert (forward.denoised - backward.denoised).abs().max() < 1e-12
    cond, uncond, weak = mixture.class_x0(X, LEVEL, 0), mixture.x0(X, LEVEL), 0.9 * mixture.x0(X, LEVEL) + 0.05
    expected = cond + 2.0 * (cond - uncond) + 0.7 * (cond - weak)
    assert (forward.x0 - expected).abs().max() < 1e-12
    assert (forward.score_shift - 0.8 * mixture.grad_log_posterior(X, LEVEL, 0)).abs().max() < 1e-12


def test_outside_its_interval_a_branch_is_never_evaluated(mixture, uniform_levels, run):
    levels = uniform_levels(20)
    for guidance, branch in [
        (ClassifierFree(4.0, interval=[0.5, 2]), "uncond"),
        (Classifier(4.0, interval=(0.5, 2.0)), "classifier"),
        (ClassifierFree(4.0, "weak", [None, 2]), "weak"),
    ]:
        evaluate = mixture.evaluate()
        run(ddim(guide(evaluate, [guidance]), X, levels))
        low = 0.5 if guidance.interval[0] is not None else 0
        inside = [low <= level.noise_ratio <= 2 for level in levels[:-1]]
        assert evaluate.calls == [("cond", branch) if yes else ("cond",) for yes in inside]
        assert 0 < sum(inside) < 20
    outside = run(ddim(guide(mixture.evaluate(), [ClassifierFree(4.0, interval=[1e3, 1e4])]), X, levels))
    assert torch.equal(outside, run(ddim(guide(mixture.evaluate()), X, levels)))


def test_two_guidances_that_share_a_branch_evaluate_it_once(mixture):
    evaluate = mixture.evaluate()
    guide(evaluate, [ClassifierFree(2.0), ClassifierFree(3.0, interval=[0, 100])])(X, LEVEL)
    assert evaluate.calls == [("cond", "uncond")]


def test_classifier_at_scale_1_pushes_noise_forward_to_p_of_x_given_y(mixture, uniform_levels, run):
    """The unconditional model under a classifier(1) carries each quantile of p_T(x | y) to the same quantile of p(x |
    y).
    """
    levels = uniform_levels(400, -6, 6)
    z = torch.tensor(ndtri([0.01, 0.1, 0.3, 0.5, 0.8, 0.99]))[:, None]

    def at(level):
        return level.alpha * mixture.means[0] + math.hypot(level.alpha * mixture.stds[0], level.sigma) * z

    denoise = guide(mixture.evaluate(0, unconditional_base=True), [Classifier(1.0)])
    assert (run(dpmpp_2m(denoise, at(levels[0]), levels)) - at(levels[-1])).abs().max() < 2e-3


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_at_other_scales_the_distribution_is_the_push_forward_of_the_guided_flow(mixture, uniform_levels, run, scale):
    """For scale != 1 the distribution at t = 0 is not p(x) p(y | x)^scale (the guided scores are of no one diffusion):
    what a solver must reach is the exact flow of the guided score, integrated here by another program."""
    levels = uniform_levels(400, -4, 4)
    x = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]

    def flow(log_snr, y):  # d(x / alpha) / d(sigma / alpha) = eps
        ratio = math.exp(-log_snr)
        level = Level(0.0, 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio))
        score = mixture.guided_score(torch.from_numpy(y)[:, None] * level.alpha, level, 0, scale)
        return ratio * level.sigma * score[:, 0].numpy()

    exact = (
        solve_ivp(flow, (-4, 4), (x[:, 0] / levels[0].alpha).numpy(), method="LSODA", rtol=1e-6, atol=1e-7).y[:, -1]
        * levels[-1].alpha
    )
    for evaluate, guidance in [
        (mixture.evaluate(0, unconditional_base=True), Classifier(scale)),
        (mixture.evaluate(0), ClassifierFree(scale)),
    ]:
        ours = run(dpmpp_2m(guide(evaluate, [guidance]), x, levels))
        assert (ours[:, 0] - torch.from_numpy(exact)).abs().max() < 2e-3


def test_the_ddpm_form_samples_p_of_x_given_y(mixture, run):
    """mu + Sigma grad log p(y | x), with many steps, draws from p(x | y)."""
    levels = make_levels(DiscreteSchedule("cosine", 250), 250)
    noise = SampleNoise(0, [0])
    denoise = guide(mixture.evaluate(0, unconditional_base=True), [Classifier(1.0)])
    x = run(ddpm(denoise, noise.initial((4000,), torch.float64), levels, noise=noise))
    assert abs(x.mean() - mixture.means[0]) < 0.03 and abs(x.std() - mixture.stds[0]) < 0.03


def test_the_ddpm_form_moves_the_mean_by_the_variance_times_the_gradient(mixture, uniform_levels, run):
    now, then = levels = uniform_levels(1, -0.5, 0.5)

    def mean(guidances):
        denoise = guide(mixture.evaluate(0, unconditional_base=True), guidances)
        return run(ddpm(denoise, X, levels, noise=lambda like, *_: torch.zeros_like(like)))

    variance = (1 - (now.alpha / then.alpha) ** 2) * then.sigma**2 / now.sigma**2
    expected = variance * 3.0 * mixture.grad_log_posterior(X, now, 0)
    assert (mean([Classifier(3.0)]) - mean([]) - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClassifierFree(-1.0), "guidance scale must be a finite number, not negative, at most 1e.06; got -1.0"),
        (lambda: ClassifierFree(float("nan")), "got nan"),
        (lambda: ClassifierFree("7.5"), "got '7.5'"),
        (lambda: Classifier(float("inf")), "classifier scale"),
        (lambda: ClassifierFree(2.0, interval=[5, 0.3]), r"must have 0 <= low < high; got \[5, 0.3\]"),
        (lambda: ClassifierFree(2.0, interval=[1, float("nan")]), "low < high"),
        (lambda: Classifier(2.0, interval=3), r"\[low, high\]"),
        (lambda: Classifier(2.0, interval=[1, 2, 3]), r"\[low, high\]"),
    ],
)
def test_nonsense_is_refused_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_branch_that_is_not_there_is_refused_before_the_first_step(mixture):
    class Evaluate:
        branches = frozenset({"cond", "uncond"})

        def __call__(self, x, level, branches):
            return mixture.evaluate()(x, level, branches)

    guide(Evaluate(), [ClassifierFree(2.0), Classifier(0.0)])
    with pytest.raises(ValueError, match='needs the branch "classifier"; here there are cond, uncond'):
        guide(Evaluate(), [Classifier(2.0)])
    with pytest.raises(ValueError, match="left out weak"):
        guide(lambda x, level, branches: mixture.evaluate()(x, level, ("cond",)), [ClassifierFree(2.0, "weak")])(
            X, LEVEL
        )
    with pytest.raises(ValueError, match="brings no gradient"):
        guide(mixture.evaluate(), [Classifier(2.0, name="uncond")])(X, LEVEL)
