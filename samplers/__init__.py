"""Noise -> sample, for any callable: torch and the standard library, and nothing of networks, images or files.

Everywhere x_t = alpha * x0 + sigma * eps. A solver is a generator; the caller owns progress, previews and early
stopping:

    >>> import torch
    >>> from samplers import ClassifierFree, DiscreteSchedule, Prediction, SampleNoise, dpmpp_2m, guide, make_levels
    >>> def evaluate(x, level, branches):  # the exact denoiser of data N(mean, 0.1), one mean a branch
    ...     def x0(mean):
    ...         return mean + 0.1 * level.alpha * (x - level.alpha * mean) / (0.1 * level.alpha**2 + level.sigma**2)
    ...     return {name: Prediction(x, level, x0({"cond": 2.0, "uncond": 0.0}[name])) for name in branches}
    >>> levels = make_levels(DiscreteSchedule("cosine"), 20)
    >>> noise = SampleNoise(seed=0, indices=range(4))
    >>> denoise = guide(evaluate, [ClassifierFree(1.5, interval=[0.1, 10])])
    >>> for step in dpmpp_2m(denoise, noise.initial((3,), torch.float64), levels, noise=noise):
    ...     pass  # step.x, step.level, step.denoised, step.index
    >>> step.x.shape, bool((step.x.mean() > 2.0).item())
    (torch.Size([4, 3]), True)
"""

import importlib
from typing import TYPE_CHECKING, Any

from samplers.guidance.base import ScaledDifferenceGuidance
from samplers.guidance.classifier import Classifier, energy
from samplers.guidance.classifier_free import (
    CFGPlusPlus,
    ClassifierFree,
    autoguidance,
    perturbed_attention,
    skip_layer,
    smoothed_energy,
)
from samplers.guidance.frequency import FrequencyDecoupled
from samplers.guidance.guide import guide
from samplers.guidance.projected import AdaptiveProjected, Tangential, ZeroStar
from samplers.guidance.rescale import DynamicThreshold, Keep, Rescale
from samplers.level import Denoise, Evaluate, Guidance, Level, Noise, Prediction, Schedule, Solver, Step
from samplers.registry import (
    GuidanceInfo,
    SamplerInfo,
    get_guidance,
    get_sampler,
    guidance,
    guidance_text,
    guidances,
    parse_call,
    parse_guidance,
    parse_sampler,
    sampler,
    samplers,
)
from samplers.solvers.ddim import ddim, ddim_inversion
from samplers.solvers.ddpm import ddpm
from samplers.solvers.dpm_2 import dpm_2, dpm_2_ancestral
from samplers.solvers.dpm_multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from samplers.solvers.dpm_solver import dpm_solver, dpmpp_2s, dpmpp_2s_ancestral, dpmpp_sde
from samplers.solvers.euler import euler, euler_ancestral, heun
from samplers.solvers.multistep import deis, lms, plms
from samplers.solvers.rk45 import rk45
from samplers.solvers.unipc import unipc
from samplers.spacing import Final, Spacing, karras_ratios, levels_at, make_levels, spaced_times
from samplers.targets import TARGETS, EDMTarget, EpsilonTarget, FlowTarget, SampleTarget, Target, VTarget, targets_on

if TYPE_CHECKING:
    from samplers.guidance.energies import colour, inpainting, similarity, with_energy
    from samplers.likelihood import Bound, bits_per_dim, flow_log_likelihood, variational_bound
    from samplers.noise import BrownianNoise, SampleNoise, interpolate
    from samplers.schedule import DiscreteSchedule, EDMSchedule, FlowSchedule

__all__ = [
    "TARGETS", "AdaptiveProjected", "Bound", "BrownianNoise", "CFGPlusPlus", "Classifier", "ClassifierFree", "Denoise",
    "DiscreteSchedule", "DynamicThreshold", "EDMSchedule", "EDMTarget", "EpsilonTarget", "Evaluate", "Final",
    "FlowSchedule", "FlowTarget", "FrequencyDecoupled", "Guidance", "GuidanceInfo", "Keep", "Level", "Noise",
    "Prediction", "Rescale", "SampleNoise", "SampleTarget", "SamplerInfo", "ScaledDifferenceGuidance", "Schedule",
    "Solver", "Spacing", "Step", "Tangential", "Target", "VTarget", "ZeroStar", "autoguidance", "bits_per_dim",
    "colour", "ddim", "ddim_inversion", "ddpm", "deis", "dpm_2", "dpm_2_ancestral", "dpm_solver", "dpmpp_2m",
    "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_3m", "dpmpp_3m_sde", "dpmpp_sde", "energy", "euler",
    "euler_ancestral", "flow_log_likelihood", "get_guidance", "get_sampler", "guidance", "guidance_text", "guidances",
    "guide", "heun", "inpainting", "interpolate", "karras_ratios", "levels_at", "lms", "make_levels",
    "parse_call", "parse_guidance",
    "parse_sampler", "perturbed_attention", "plms", "rk45", "sampler", "samplers", "similarity", "skip_layer",
    "smoothed_energy", "spaced_times", "targets_on", "unipc", "variational_bound", "with_energy",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """What needs torch is imported at its first use, so that names and options of the rest are listed without it."""
    if name not in __all__:
        raise AttributeError(f"module 'samplers' has no attribute {name!r}")
    for module in ("guidance.energies", "likelihood", "noise", "schedule"):
        values = vars(importlib.import_module(f"samplers.{module}"))
        globals().update({key: values[key] for key in __all__ if key in values and key not in globals()})
    return globals()[name]
