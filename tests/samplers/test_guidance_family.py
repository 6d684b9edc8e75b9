"""Each guidance against the closed form of its paper, and against diffusers' guiders where they have it."""

import itertools
import math

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from diffusers.guiders.tangential_classifier_free_guidance import normalized_guidance as tangential

from samplers import (
    AdaptiveProjected,
    CFGPlusPlus,
    Classifier,
    ClassifierFree,
    DiscreteSchedule,
    DynamicThreshold,
    FlowSchedule,
    FrequencyDecoupled,
    Keep,
    Level,
    Prediction,
    Rescale,
    SampleNoise,
    Tangential,
    ZeroStar,
    autoguidance,
    colour,
    ddim,
    dpmpp_2m,
    energy,
    guide,
    inpainting,
    make_levels,
    parse_guidance,
    perturbed_attention,
    samplers,
    similarity,
    with_energy,
)
from samplers.guidance.frequency import blur

LEVEL = DiscreteSchedule().level(400)


@pytest.fixture
def x():
    return torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def branches(x, level=LEVEL):
    """Predictions of two unlike branches."""
    return {
        "cond": Prediction(x, level, torch.sin(x) + 0.3),
        "uncond": Prediction(x, level, 0.6 * x.roll(1, -1) - 0.1),
    }


def apply(guidance, x, level=LEVEL):
    raw = branches(x, level)
    return guide(lambda *_: raw, [guidance])(x, level), raw["cond"], raw["uncond"]


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_cfgpp_is_its_papers_step(mixture, uniform_levels, run, x, scale):
    """x' = alpha' x0_guided + sigma' eps_uncond (Algorithm 2), and DPM++ 2M starts with the same step."""
    levels = uniform_levels(2)
    cond, uncond = mixture.class_x0(x, levels[0], 0), mixture.x0(x, levels[0])
    eps = (x - levels[0].alpha * uncond) / levels[0].sigma
    expected = levels[1].alpha * (uncond + scale * (cond - uncond)) + levels[1].sigma * eps
    for solver in (ddim, dpmpp_2m):
        ours = run(solver(guide(mixture.evaluate(), [CFGPlusPlus(scale)]), x, levels[:2]))
        assert (ours - expected).abs().max() < 1e-12
    evaluate = mixture.evaluate()
    outside = run(ddim(guide(evaluate, [CFGPlusPlus(scale, interval=[1e3, 1e4])]), x, levels))
    assert torch.equal(outside, run(ddim(guide(mixture.evaluate()), x, levels)))
    assert set(evaluate.calls) == {("cond",)}


@pytest.mark.parametrize(
    ("eta", "norm", "momentum"), [(0.0, 0.0, 0.0), (0.4, 2.5, 0.0), (0.2, 3.0, -0.5), (1.0, 0.0, 0.0)]
)
def test_apg_is_its_papers_algorithm(x, eta, norm, momentum):
    guidance, buffer = AdaptiveProjected(5.0, eta=eta, norm=norm, momentum=momentum), MomentumBuffer(momentum)
    raw = {}
    denoise = guide(lambda *_: raw, [guidance])
    for t in (900, 600, 300):
        level = DiscreteSchedule().level(t)
        raw.update(branches(x * t / 500, level))
        expected = normalized_guidance(
            raw["cond"].x0, raw["uncond"].x0, 4.0, buffer, eta, norm, use_original_formulation=True
        )  # the paper's form: cond + (w - 1) * update
        assert (denoise(x, level).x0 - expected).abs().max() < 1e-12
    if eta == 1 and norm == 0 and momentum == 0:
        assert torch.allclose(denoise(x, level).x0, apply(ClassifierFree(5.0), raw["cond"].x, level)[0].x0)


def test_apg_forgets_between_runs(mixture, uniform_levels, run, x):
    denoise = guide(mixture.evaluate(), [AdaptiveProjected(5.0, momentum=-0.5)])
    first, second = (run(dpmpp_2m(denoise, x, uniform_levels(6))) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(
        first, run(dpmpp_2m(guide(mixture.evaluate(), [AdaptiveProjected(5.0)]), x, uniform_levels(6)))
    )


@pytest.mark.parametrize("level", [FlowSchedule().level(600), FlowSchedule().level(50)])
def test_cfg_zero_is_its_papers_rule_on_the_velocity(x, level):
    p, cond, uncond = apply(ZeroStar(4.0), x, level)
    v, u = ((x - q.x0) / level.sigma for q in (cond, uncond))
    fit = ((v * u).sum((1, 2, 3)) / (u * u).sum((1, 2, 3))).view(-1, 1, 1, 1)
    assert torch.allclose(fit.view(-1, 1), cfg_zero_star_scale(v.flatten(1), u.flatten(1)).double(), atol=1e-6)
    expected = x - level.sigma * (fit * u + 4.0 * (v - fit * u))
    assert (p.x0 - expected).abs().max() < 1e-8


def test_cfg_zero_moves_nothing_at_pure_noise(x, run):
    levels = make_levels(FlowSchedule(), 4)[:2]
    guided = run(ddim(guide(lambda x, level, _: branches(x, level), [ZeroStar(4.0)]), x, levels))
    assert (guided - x).abs().max() < 1e-12
    moved = run(ddim(guide(lambda x, level, _: branches(x, level), [ZeroStar(4.0, zero_init=False)]), x, levels))
    assert (moved - x).abs().max() > 0.1


def test_tangential_is_its_papers_projection(x):
    p, cond, uncond = apply(Tangential(4.0), x)
    expected = tangential(cond.eps, uncond.eps, 4.0)  # diffusers takes the singular vectors in float32
    assert (p.eps - expected).abs().max() < 2e-5


def test_frequency_decoupled(x):
    cond, uncond = (branches(x)[name].x0 for name in ("cond", "uncond"))
    d = cond - uncond
    p, *_ = apply(FrequencyDecoupled(3.0, low=1.5), x)
    assert torch.allclose(p.x0, uncond + 1.5 * blur(d) + 3.0 * (d - blur(d)), atol=1e-12)
    same, *_ = apply(FrequencyDecoupled(3.0, low=3.0), x)
    assert torch.allclose(same.x0, apply(ClassifierFree(3.0), x)[0].x0, atol=1e-12)
    flat = torch.ones(1, 2, 8, 16, dtype=x.dtype)
    assert torch.allclose(blur(flat), flat)
    assert (
        blur(flat * torch.tensor([1.0, -1.0] * 8))[..., 4:-4].abs().max() < 1e-12
    )  # the finest stripes have no coarse part
    with pytest.raises(ValueError, match="fdg needs images"):
        apply(FrequencyDecoupled(3.0), x[0])


def test_rescale_and_threshold(x):
    raw = branches(x)

    def denoise(*guidances):
        return guide(lambda *_: raw, list(guidances))(x, LEVEL).x0

    cond, guided = raw["cond"].x0, denoise(ClassifierFree(6.0))
    full, half = denoise(Rescale(1.0), ClassifierFree(6.0)), denoise(ClassifierFree(6.0), Rescale(0.5))  # always last
    over = (1, 2, 3)
    assert torch.allclose(full.std(over), cond.std(over))
    assert torch.allclose(half, 0.5 * full + 0.5 * guided)
    clipped = denoise(DynamicThreshold(0.9, 1.0), ClassifierFree(6.0))
    s = torch.quantile(guided.abs().flatten(1), 0.9, dim=1).clamp(min=1).view(-1, 1, 1, 1)
    assert torch.allclose(clipped, guided.clamp(-s, s) / s) and clipped.abs().max() <= 1
    assert torch.equal(denoise(DynamicThreshold(1.0, 100.0)), cond)


def test_kin_of_cfg_name_their_branches():
    assert autoguidance(2.1).needs == ("weak",) and autoguidance(1.0).needs == ()
    for name, branch in [("pag", "perturbed"), ("seg", "blurred"), ("slg", "skipped")]:
        guidance = parse_guidance(f"{name}(3.0, interval=[0.1, 9])")
        assert guidance == ClassifierFree(4.0, branch, [0.1, 9]) and parse_guidance(f"{name}(0)").needs == ()


def test_curves_and_users_functions(x):
    """Over the angle u both curves have the mean 1 and fall with the noise; factor 0 means the conditional model."""
    levels = [Level(0.0, math.cos(a), math.sin(a)) for a in torch.linspace(0.001, math.pi / 2 - 0.001, 2000).tolist()]
    for curve in ("linear", "cosine"):
        scales = [ClassifierFree(3.0, curve=curve).scale_at(level) for level in levels]
        assert sum(scales) / len(scales) == pytest.approx(3.0, abs=1e-6)
        assert all(a > b for a, b in itertools.pairwise(scales)) and scales[-1] == pytest.approx(1.0, abs=1e-2)
        assert Classifier(2.0, curve=curve).scale_at(levels[0]) == pytest.approx(4.0, abs=1e-2)
    switch = ClassifierFree(3.0, curve=lambda u: float(u < 0.5))
    assert switch.branches(levels[0]) == ("uncond",) and switch.branches(levels[-1]) == ()
    with pytest.raises(ValueError, match="curve of a guidance gave nan"):
        ClassifierFree(3.0, curve=lambda u: math.nan).scale_at(levels[0])
    assert parse_guidance("cfg(3, curve='cosine')") == ClassifierFree(3, curve="cosine")


class Gaussian:
    """evaluate for data N(1, 0.25): x0 is linear in x."""

    branches = frozenset({"cond"})
    calls = 0

    def slope(self, level):
        return 0.25 * level.alpha / (0.25 * level.alpha**2 + level.sigma**2)

    def __call__(self, x, level, branches):
        self.calls += 1
        return {name: Prediction(x, level, 1 + self.slope(level) * (x - level.alpha)) for name in branches}


@pytest.mark.parametrize("how", ["x", "jacobian", "direct"])
def test_energy_gradients(x, how):
    evaluate = Gaussian()
    target = torch.full_like(x, 2.0)
    options = {"x": {"of": "x"}, "jacobian": {}, "direct": {"jacobian": False}}[how]
    guided = with_energy(evaluate, inpainting(target, torch.ones(1)), normalize=False, **options)
    p = guide(guided, [energy(0.7)])(x, LEVEL)
    x0 = 1 + evaluate.slope(LEVEL) * (x - LEVEL.alpha)
    expected = {
        "x": 2 * (x - target),
        "jacobian": 2 * (x0 - target) * evaluate.slope(LEVEL),
        "direct": 2 * (x0 - target) * LEVEL.alpha / LEVEL.sigma**2,
    }[how]
    assert (p.score_shift + 0.7 * expected).abs().max() < 1e-12
    assert torch.equal(p.x0, x0) and not p.x0.requires_grad and not p.score_shift.requires_grad and evaluate.calls == 1
    if how == "direct":
        assert (p.denoised - (x0 - 0.7 * 2 * (x0 - target))).abs().max() < 1e-12
    with torch.no_grad():
        assert torch.allclose(guide(guided, [energy(0.7)])(x, LEVEL).score_shift, p.score_shift)
    guided(x, LEVEL, ("cond",))
    assert evaluate.calls == 3 and "energy" in guided.branches


@pytest.mark.parametrize("how", ["x", "jacobian", "direct"])
def test_a_normalised_energy_gives_the_direction_alone(x, how):
    """The length is sigma / sqrt(alpha^2 + sigma^2) a number, whatever the unit of the energy."""
    options = {"x": {"of": "x"}, "jacobian": {}, "direct": {"jacobian": False}}[how]
    far = torch.full_like(x, 50.0)
    x0 = Gaussian()(x, LEVEL, ("cond",))["cond"].x0
    moves = []
    for unit in (1e-6, 1.0, 1e6):
        guided = with_energy(Gaussian(), lambda z, unit=unit: unit * (z - far).square().sum((1, 2, 3)), **options)
        moves.append(guide(guided, [energy(0.7)])(x, LEVEL).denoised - x0)
    length = 0.7 * LEVEL.sigma / math.hypot(LEVEL.alpha, LEVEL.sigma)
    for move in moves:
        assert torch.allclose(move.square().mean((1, 2, 3)).sqrt(), x.new_tensor(length))
        assert torch.allclose(move, moves[1])
    towards = far - (x if how == "x" else x0)
    assert torch.nn.functional.cosine_similarity(moves[1].flatten(1), towards.flatten(1)).min() > 1 - 1e-9


def test_an_energy_with_a_minimum_moves_the_estimate_no_farther_than_there(x):
    """Near the minimum of a quadratic its slope leads half of the way (Polyak); at it, nowhere."""
    x0 = Gaussian()(x, LEVEL, ("cond",))["cond"].x0
    for distance in (0.0, 0.1):
        target = x0 + distance
        guided = with_energy(Gaussian(), inpainting(target, torch.ones(1)), jacobian=False, minimum=0.0)
        assert torch.allclose(guide(guided, [energy(1.0)])(x, LEVEL).denoised, x0 + distance / 2, atol=1e-12)


def test_one_scale_serves_every_energy(x, uniform_levels, run):
    levels = uniform_levels(40, -4, 4)

    def sample(function, scale):
        return run(ddim(guide(with_energy(Gaussian(), function, minimum=0.0), [energy(scale)]), x, levels))

    known, mask = torch.full_like(x, -0.5), torch.zeros(1, 1, 8, 8, dtype=x.dtype)
    mask[..., :4] = 1
    for function in (
        colour([0.2, 1.5]),
        inpainting(known, mask),
        similarity(lambda z: z.flatten(1)[:, :6], torch.tensor([[1.0, -1, 1, -1, 1, -1]], dtype=x.dtype)),
    ):
        plain, guided = sample(function, 0.0), sample(function, 1.0)
        assert (function(guided) < 0.1 * function(plain)).all()
        assert guided.abs().max() < 1.5 * plain.abs().max()


@pytest.mark.parametrize("name", sorted(samplers()))
def test_keep_ends_at_what_is_known_and_fits_the_rest_to_it(x, run, name):
    """Data whose two halves are equal: with one half known, every solver makes the other half like it."""

    def denoise(x, level, branches):
        half = (x[..., :4] + x[..., 4:]) / 2  # of variance sigma^2 / 2 about alpha * x0
        gain = level.alpha / (level.alpha**2 + level.sigma**2 / 2)
        return {"cond": Prediction(x, level, gain * torch.cat([half, half], -1))}

    known, mask = x.flip(0), torch.zeros(1, 1, 8, 8, dtype=x.dtype)
    mask[..., :4] = 1
    levels = make_levels(DiscreteSchedule(), 40)
    guided = guide(denoise, [Keep(known, mask), Classifier(0.0)])
    out = run(samplers()[name].function(guided, x, levels, noise=SampleNoise(0, range(3))))
    assert (out - known)[..., :4].abs().max() < 1e-9
    plain = run(samplers()[name].function(guide(denoise), x, levels, noise=SampleNoise(0, range(3))))
    assert (out[..., 4:] - known[..., :4]).abs().mean() < 0.8 * (plain[..., 4:] - known[..., :4]).abs().mean()


def test_energy_refusals(x):
    with pytest.raises(ValueError, match='of "x0" or of "x"'):
        with_energy(Gaussian(), colour([0.0]), of="eps")
    with pytest.raises(ValueError, match=r"a number a sample, shape \(3,\); got \(3, 2, 8, 8\)"):
        guide(with_energy(Gaussian(), lambda x0: x0**2), [energy(1.0)])(x, LEVEL)
    with pytest.raises(ValueError, match='branch "energy" already'):
        with_energy(with_energy(Gaussian(), colour([0.0])), colour([0.0]))
    with pytest.raises(ValueError, match='needs the branch "energy"'):
        guide(Gaussian(), [energy(1.0)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pag(-2)", "pag scale must be a finite number, not negative"),
        ("apg(2, momentum=1.5)", "between -1 and 1"),
        ("apg(2, norm=-1)", "apg norm"),
        ("rescale(1.5)", "at most 1"),
        ("threshold(0)", r"in \(0, 1\]"),
        ("threshold(limit=0)", "positive number"),
        ("fdg(2, low=-1)", "fdg low"),
        ("cfg(2, curve='sine')", "one of constant, linear, cosine"),
        ("energy(-1)", "energy scale"),
        ("apg(2, momentum='x')", "wrong type"),
        ("cfg(2, curve=['linear'])", "wrong type"),
    ],
)
def test_nonsense_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_guidance(text)


def test_perturbed_attention_is_linear_against_its_branch(x):
    raw = {"cond": branches(x)["cond"], "perturbed": branches(x)["uncond"]}
    p = guide(lambda *_: raw, [perturbed_attention(2.0)])(x, LEVEL)
    assert torch.allclose(p.x0, raw["cond"].x0 + 2.0 * (raw["cond"].x0 - raw["perturbed"].x0))
