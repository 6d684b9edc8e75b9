"""A sample depends on its own seed and index alone."""

import pytest
import torch

from samplers import (
    BrownianNoise,
    DiscreteSchedule,
    Level,
    SampleNoise,
    get_sampler,
    interpolate,
    make_levels,
    samplers,
)

LEVELS = make_levels(DiscreteSchedule("cosine"), 6)


@pytest.mark.parametrize("name", sorted(samplers()))
def test_same_seed_same_sample_in_any_batch(toy, run, name):
    """Exactly, in float64 with a pure function: in a batch of 1, 5 and 64, in another order, and with another start
    index.
    """
    net, solver = toy("sample"), get_sampler(name).function

    def sample(indices):
        noise = SampleNoise(7, indices)
        return run(solver(net, noise.initial((2, 3), torch.float64), LEVELS, noise=noise))

    batch = sample(range(64))
    for indices in ([3], range(5), [9, 2]):
        if name == "rk45":  # its step size is that of the worst sample of the batch
            assert torch.allclose(sample(indices), batch[list(indices)], atol=1e-2)
        else:
            assert torch.equal(sample(indices), batch[list(indices)])


def test_streams_differ_by_seed_index_purpose_and_step():
    noise = SampleNoise(0, [0])
    x = noise.initial((4,))
    others = [SampleNoise(1, [0]), SampleNoise(0, [1]), SampleNoise(1, [1]), SampleNoise(0, [0], "other")]
    draws = [x, noise(x, *LEVELS[:2]), noise(x, *LEVELS[1:3]), *(other.initial((4,)) for other in others)]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == len(draws)
    assert torch.equal(noise.initial((4,)), x)


def test_it_is_normal_and_leaves_global_state_alone():
    before = torch.random.get_rng_state()
    x = SampleNoise(0, range(200)).initial((500,), torch.float64)
    assert torch.equal(before, torch.random.get_rng_state())
    assert abs(x.mean()) < 0.02 and abs(x.var() - 1) < 0.02
    assert abs(torch.corrcoef(x[:2])[0, 1]) < 0.2 and x.dtype == torch.float64


def test_every_dtype_sees_the_same_noise():
    a, b = (SampleNoise(0, [4]).initial((8,), dtype) for dtype in (torch.float32, torch.float64))
    assert torch.equal(a.double(), b)


def test_refusals():
    with pytest.raises(ValueError, match="at least one sample"):
        SampleNoise(0, [])
    with pytest.raises(ValueError, match="for 2 samples; got a batch of 3"):
        SampleNoise(0, [0, 1])(torch.zeros(3, 4), *LEVELS[:2])


def test_brownian_noise_is_one_path(uniform_levels):
    """Unit variance; independent where stretches do not overlap; whole = sum of parts, whatever the earlier calls."""
    a, b, c, d = (uniform_levels(1, at, at + 1)[0] for at in (-2.0, -1.8, 0.5, 2.0))
    like = torch.zeros(1000, 2, dtype=torch.float64)
    noise = BrownianNoise(0, range(1000))
    parts = [noise(like, *pair) for pair in ((a, b), (b, c), (c, d))]
    table = torch.corrcoef(torch.stack([p.flatten() for p in parts]))
    assert all(abs(p.var() - 1) < 0.1 for p in parts) and (table - torch.eye(3)).abs().max() < 0.1
    snr = [(level.alpha / level.sigma) ** 2 for level in (a, b, c, d)]
    whole = sum(p * (v - u) ** 0.5 for p, u, v in zip(parts, snr, snr[1:], strict=False)) / (snr[3] - snr[0]) ** 0.5
    assert torch.allclose(BrownianNoise(0, range(1000))(like, a, d), whole, atol=1e-9)
    assert torch.equal(BrownianNoise(0, [7])(like[:1], b, c), parts[1][7:8])
    with pytest.raises(ValueError, match="no noise from log-SNR"):
        noise(like, d, Level(0.0, 1.0, 0.0))


def test_interpolation_keeps_the_variance():
    a, b = SampleNoise(0, [0, 1]).initial((20000,), torch.float64)
    for weight in (0.0, 0.3, 1.0):
        assert abs(interpolate(a, b, weight).var() - 1) < 0.05
    assert torch.equal(interpolate(a, b, 0.0), a) and torch.allclose(interpolate(a, b, 1.0), b)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        interpolate(a, b, 1.5)
