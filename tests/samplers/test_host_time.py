"""A step costs the host little, and never waits for the device."""

import time

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch.overrides import TorchFunctionMode

from samplers import (
    DiscreteSchedule,
    Prediction,
    SampleNoise,
    get_sampler,
    guide,
    make_levels,
    parse_guidance,
    samplers,
)

SCHEDULE = DiscreteSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cls", "times"),
    [("ddim", DDIMScheduler, 6), ("dpmpp_2m", DPMSolverMultistepScheduler, 6), ("unipc", UniPCMultistepScheduler, 4)],
)
def test_host_time_of_a_step_against_diffusers(name, cls, times):
    """50 steps, a denoiser that costs nothing, the two run in turn; the best of each is compared."""
    x, output = torch.randn(2, 1, 4, 8, 8)
    levels = make_levels(SCHEDULE, 50)

    def ours():
        for _ in get_sampler(name).function(lambda x, level: Prediction(x, level, output), x, levels):
            pass

    def theirs():
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(output, t, y).prev_sample

    best = {ours: float("inf"), theirs: float("inf")}
    for _ in range(30):
        for run in (ours, theirs):
            scheduler = cls(**SCHEDULE.config(), timestep_spacing="trailing")
            scheduler.set_timesteps(50)
            start = time.perf_counter()
            run()
            best[run] = min(best[run], time.perf_counter() - start)
    assert best[theirs] > times * best[ours]


class NoReadingBack(TorchFunctionMode):
    """Fails where a tensor's values are read, which on a GPU would wait for it."""

    READS = (
        "item",
        "tolist",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "numpy",
        "cpu",
        "nonzero",
        "__contains__",
    )

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        assert name not in self.READS, f"a value is read back by {name}"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(set(samplers()) - {"rk45"}))
def test_no_value_is_read_back(mixture, name):
    """rk45 alone must: its step depends on the error."""
    texts = [
        "cfg(3, interval=[0.1, 50], curve='linear')",
        "classifier(0.5)",
        "apg(2, norm=2.0, momentum=-0.3)",
        "tcfg(1.5)",
    ]
    texts += ["cfg_zero(1.5)", "fdg(2, low=1.2)", "rescale(0.7)", "threshold(limit=3.0)", "cfgpp(0.6)"]
    noise = SampleNoise(0, range(2))
    x, levels = noise.initial((2, 4, 4), torch.float64), make_levels(SCHEDULE, 6)
    denoise = guide(mixture.evaluate(), [parse_guidance(text) for text in texts])
    with NoReadingBack():
        for _ in get_sampler(name).function(denoise, x, levels, noise=noise):
            pass
    with pytest.raises(AssertionError, match="read back"), NoReadingBack():
        bool(x.sum() > 0)
