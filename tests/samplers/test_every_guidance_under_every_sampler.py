"""One test for every registered solver under every registered guidance."""

import pytest
import torch

from samplers import (
    DiscreteSchedule,
    Prediction,
    SampleNoise,
    get_sampler,
    guidances,
    guide,
    make_levels,
    parse_guidance,
    samplers,
)

# name -> (a list of calls that changes the sample, one of zero strength, and what that must not change)
CALLS = {
    "cfg": (["cfg(2.5)"], ["cfg(1)"], []),
    "cfgpp": (["cfgpp(0.6)"], ["cfgpp(0)"], ["cfg(0)"]),  # at no strength it is the unconditional model
    "classifier": (["classifier(1.5)"], ["classifier(0)"], []),
    "energy": (["energy(0.3)"], ["energy(0)"], []),
    "autoguidance": (["autoguidance(2)"], ["autoguidance(1)"], []),
    "pag": (["pag(2)"], ["pag(0)"], []),
    "seg": (["seg(2)"], ["seg(0)"], []),
    "slg": (["slg(2)"], ["slg(0)"], []),
    "apg": (["apg(4, eta=0.3, norm=2.0, momentum=-0.4)"], ["apg(1, momentum=-0.4)"], []),
    "cfg_zero": (["cfg_zero(3)"], ["cfg_zero(1)"], []),
    "tcfg": (["tcfg(3)"], ["tcfg(1)"], []),
    "fdg": (["fdg(3, low=1.5)"], ["fdg(1)"], []),
    "rescale": (["cfg(2.5)", "rescale(0.7)"], ["cfg(2.5)", "rescale(0)"], ["cfg(2.5)"]),
    "threshold": (["threshold(0.9, limit=1.0)"], ["threshold(limit=1e9)"], []),
}
LEVELS = make_levels(DiscreteSchedule("cosine"), 8)


@pytest.mark.parametrize("guidance", sorted(guidances()))
@pytest.mark.parametrize("name", sorted(samplers()))
def test_runs_is_finite_differs_and_is_neutral_at_zero_strength(mixture, run, name, guidance):
    def sample(texts):
        noise = SampleNoise(5, range(3))
        denoise = guide(mixture.evaluate(), [parse_guidance(text) for text in texts])
        return run(get_sampler(name).function(denoise, noise.initial((2, 4, 4), torch.float64), LEVELS, noise=noise))

    strong, neutral, same = CALLS[guidance]
    plain, guided = sample(same), sample(strong)
    assert torch.isfinite(guided).all() and guided.shape == plain.shape
    assert (guided - plain).abs().max() > 1e-3
    assert (sample(neutral) - plain).abs().max() <= 1e-12
    assert torch.isfinite(sample([*strong, "cfg(1.5, against='weak')", "classifier(0.5)"])).all()


@pytest.mark.parametrize("name", sorted(samplers()))
def test_steps_are_announced_and_lazy(mixture, start, name):
    evaluate = mixture.evaluate()
    noise = SampleNoise(0, range(2))
    steps = get_sampler(name).function(guide(evaluate), start, LEVELS, noise=noise)
    assert evaluate.calls == []  # nothing runs before the first step is taken
    all_steps = list(steps)
    assert [step.index for step in all_steps] == list(range(8))
    assert [step.level for step in all_steps] == list(LEVELS[1:])
    assert all(step.denoised.shape == start.shape == step.x.shape for step in all_steps)


@pytest.mark.parametrize("name", sorted(samplers()))
def test_a_step_of_no_length_and_pure_noise_at_the_start_work(mixture, start, run, name):
    noise = SampleNoise(0, range(2))
    solver = get_sampler(name).function
    twice = make_levels(DiscreteSchedule("cosine"), 5, "leading", final="first")
    assert twice[-1] == twice[-2]
    assert torch.isfinite(run(solver(guide(mixture.evaluate()), start, twice, noise=noise))).all()
    silent = make_levels(DiscreteSchedule(rescale_zero_snr=True), 5)
    assert silent[0].alpha == 0
    assert torch.isfinite(run(solver(guide(mixture.evaluate()), start, silent, noise=noise))).all()


@pytest.mark.parametrize("name", sorted(samplers()))
def test_the_long_first_step_of_a_cosine_schedule_leads_to_the_data(run, name):
    """From sigma / alpha = 2e4 to 18 in one step, with a network that is a little wrong, as all are."""

    def network(x, level):  # data of N(0, 1), for which x0 = alpha x
        return Prediction(x, level, level.alpha * x + 0.05 * torch.sin(3 * x + level.t))

    noise = SampleNoise(3, range(64))
    levels = make_levels(DiscreteSchedule("cosine"), 25, "trailing")
    x = run(get_sampler(name).function(network, noise.initial((8,), torch.float64), levels, noise=noise))
    assert 0.85 < x.std() < 1.15 and x.mean().abs() < 0.2
