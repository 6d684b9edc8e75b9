"""One plan for sampling: the settings parsed and checked once for a model, then taken by every batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ldm.models.backbone import Backbone
from ldm.models.perturbation import Kind, Perturbation
from ldm.models.unet import UNet
from ldm.runtime.compilation import check_compiler
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.text import printable
from ldm.sampling.config import ResolvedSampling, SamplingConfig
from ldm.sampling.effects import Effect, Measured
from ldm.sampling.energies import Energy, Function, all_energies
from ldm.sampling.forward_process import Process
from ldm.sampling.image_model import Plan
from ldm.sampling.networks import Networks
from ldm.sampling.start import PathNoise, Start
from samplers import (
    Classifier,
    ClassifierFree,
    Evaluate,
    Guidance,
    Level,
    Prediction,
    SampleNoise,
    ScaledDifferenceGuidance,
    Solver,
    Step,
    ddim,
    get_sampler,
    guide,
    make_levels,
    parse_guidance,
    parse_sampler,
)
from samplers.level import short_repr

Energies: TypeAlias = Mapping[str, Function | Energy]
PERTURBED: dict[str, Kind] = {"perturbed": "identity", "blurred": "blur", "skipped": "skip"}


@dataclass(frozen=True, kw_only=True)
class SamplingPlan(Plan):
    """`SamplingConfig` resolved for one model. Without arguments: the model itself, unguided."""

    config: ResolvedSampling = field(default_factory=ResolvedSampling)
    guidances: tuple[Guidance, ...] = ()
    guidance_names: tuple[
        str, ...
    ] = ()  # the settings or texts that the first guidances come from; the rest is an edit
    levels: tuple[Level, ...] = ()  # down to sigma = 0
    solver: Solver = ddim
    options: Mapping[str, Any] = field(default_factory=dict)  # of the solver
    energies: Mapping[str, Energy] = field(default_factory=dict)  # by the names of their branches
    perturbations: Mapping[str, Perturbation] = field(default_factory=dict)  # by the names of their branches
    start: Start | None = None  # elsewhere than in pure noise

    __repr__ = short_repr

    @property
    def needed(self) -> set[str]:
        """Branches besides "cond" that the guidances may evaluate."""
        return needed_branches(self.guidances)

    @property
    def named(self) -> set[str]:
        """Branches that the guidances name, even at a strength of zero."""
        return named_branches(self.guidances)

    @property
    def base_is_null(self) -> bool:
        """Whether the base prediction is that of the null condition: at scale 0 everywhere."""
        return self.config.guidance_scale == 0 and self.config.guidance_interval is None

    def begin_at(self, start: Start) -> SamplingPlan:
        """The plan for sampling that begins elsewhere than in pure noise."""
        guidances, levels = (*self.guidances, *start.guidances), start.levels(self.levels)
        guidances, levels = (*self.guidances, *start.guidances), start.levels(self.levels)
        return replace(self, guidances=guidances, levels=levels, start=start)

    def solve(
        self, evaluate: Evaluate, x: Tensor, noise: SampleNoise | PathNoise, effects: Sequence[Effect] = ()
    ) -> Iterator[Step]:
        """The steps of the solver from x (B, C, h, w) at the first level, under the guidances.

        `effects` take how much each of the first guidances changes the predictions.
        """
        guidances = [*map(Measured, self.guidances, effects), *self.guidances[len(effects) :]]
        return self.solver(guide(evaluate, guidances), x, self.levels, noise=noise, **self.options)


def resolve(config: ResolvedSampling, networks: Networks, energies: Energies | None = None) -> SamplingPlan:
    """Parse the settings and check them against the networks, once; `UserError` says what would be right.

    `energies` are a user's own, as `Pipeline.generate` takes them.
    """
    check_compiler(config.compile, networks.device)
    _check_feature_cache(config, networks.unet)
    named = named_guidances(config)
    guidances = tuple(guidance for _, guidance in named)
    energies_by_name = all_energies(energies or {}, config.energy, networks)
    _check_guidances(config, guidances, networks, energies_by_name)
    with user_errors(setting=("num_inference_steps", "spacing")):
        levels = make_levels(networks.process.schedule, config.num_inference_steps, config.spacing)
    solver, options = validate_sampler(networks.process, levels, config.sampler, networks.learned_variance)
    perturbations = _perturbations(config, needed_branches(guidances), networks.unet)
    return SamplingPlan(
        config=config,
        guidances=guidances,
        guidance_names=tuple(name for name, _ in named),
        levels=levels,
        solver=solver,
        options=options,
        energies=energies_by_name,
        perturbations=perturbations,
    )


def parse_guidances(config: SamplingConfig) -> tuple[Guidance, ...]:
    """The guidances of the settings, those of the model's defaults aside."""
    return tuple(guidance for _, guidance in named_guidances(config))


def named_guidances(config: SamplingConfig) -> list[tuple[str, Guidance]]:
    """The guidances of the settings, each with the setting or the text that it comes from."""
    guidances: list[tuple[str, Guidance]] = []
    scale, interval = config.guidance_scale, config.guidance_interval
    with user_errors():
        if (
            scale is not None and scale != 1 and (scale != 0 or interval is not None)
        ):  # else the base prediction is all of it
            guidances.append((f"`guidance_scale` {scale:g}", ClassifierFree(scale, interval=interval)))
        if strength := config.classifier_scale:
            classifier = Classifier(strength, interval=config.classifier_interval)
            guidances.append((f"`classifier_scale` {strength:g}", classifier))
        for text in config.guidance:
            guidance = parse_guidance(text)
            if isinstance(guidance, Classifier) and guidance.interval is None:
                guidance = replace(guidance, interval=config.classifier_interval)
            guidances.append((f"`guidance` {printable(text)}", guidance))
    return guidances


def needed_branches(guidances: Sequence[Guidance]) -> set[str]:
    """Branches besides "cond" that the guidances may evaluate."""
    return {name for guidance in guidances for name in guidance.needs}


def named_branches(guidances: Sequence[Guidance]) -> set[str]:
    """Branches that the guidances name, even at a strength of zero."""
    others = {guidance.against for guidance in guidances if isinstance(guidance, ScaledDifferenceGuidance)}
    return others | {guidance.name for guidance in guidances if isinstance(guidance, Classifier)}


def validate_sampler(
    process: Process, levels: Sequence[Level], text: str, learned_variance: bool = False
) -> tuple[Solver, dict[str, Any]]:
    """The solver and its options, after a run on zeros without a network: what it refuses is refused now, one line."""

    def denoise(x: Tensor, level: Level) -> Prediction:
        x0 = process.prediction.x0(torch.zeros_like(x), x, level.alpha, level.sigma)
        return Prediction(x, level, x0, variance_fraction=torch.zeros_like(x) if learned_variance else None)

    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    with user_errors(setting="sampler", value=text):
        name, options = parse_sampler(text)
        solver = get_sampler(name).function
        for step in solver(denoise, x, levels, noise=SampleNoise(0, [0]), **options):
            x = step.x
        if not torch.isfinite(x).all():
            raise ValueError("gives no finite number on this model's noise schedule")
    return solver, options


def _check_feature_cache(config: SamplingConfig, unet: Backbone) -> None:
    if config.feature_cache == 1:
        return
    problem, remedy = "", "leave one of them out"
    if config.feature_cache < 1:
        problem, remedy = f"must be 1 or more, got {config.feature_cache}", "1 is exact"
    elif not isinstance(unet, UNet) or len(unet.config.block_out_channels) == 1:
        problem, remedy = "this network has one resolution, so nothing below it to keep", "leave it out"
    elif config.compile != "none":
        problem = "not together with `compile`"
    if problem:
        raise UserError(problem, remedy=remedy, setting="feature_cache")


def _check_guidances(
    config: ResolvedSampling, guidances: Sequence[Guidance], networks: Networks, energies: Mapping[str, Energy]
) -> None:
    """`UserError` for guidances that need a branch that these networks lack."""
    needed = needed_branches(guidances)
    predictions = {"cond", "uncond", "weak", *PERTURBED}
    gradients = {*networks.classifiers, *energies}
    if taken := energies.keys() & {*predictions, *networks.classifiers}:
        raise UserError(f"there is a branch {min(taken)!r} already", remedy="give name='...'", setting="energy")
    for guidance in guidances:
        if isinstance(guidance, Classifier) and guidance.scale and guidance.name not in gradients:
            raise UserError(_no_gradient(guidance.name, sorted(networks.classifiers), sorted(energies)))
        if isinstance(guidance, ScaledDifferenceGuidance) and guidance.against in gradients:
            problem = f"{guidance.against!r} gives a gradient, not a prediction to compare with"
            raise UserError(problem, setting="guidance")
    if (config.guidance_scale != 1 or "uncond" in needed) and networks.condition_dropout == 0:
        why = "this model was trained without condition dropout, so it has no unconditional branch"
        remedy = "use 1, or train with `condition_dropout` 0.1"
        if not (networks.has_text or networks.has_classes):
            why, remedy = "this model is unconditional, so there is nothing to guide towards", "use 1"
        subject = f"`guidance_scale` {config.guidance_scale}" if config.guidance_scale != 1 else "`guidance`"
        raise UserError(f"{subject}: {why}", remedy=remedy)
    if "weak" in needed and networks.guiding_model is None:
        remedy = "give `weak` a model folder or RUN/checkpoint-STEP"
        raise UserError("no network for the branch 'weak'", remedy=remedy, setting="guidance")
    known = (predictions - {"cond"}) | gradients
    if unknown := sorted(needed - known):
        remedy = f"there are {', '.join(sorted(known))}"
        raise UserError(f"no network for the branch {unknown[0]!r}", remedy=remedy, setting="guidance")


def _no_gradient(name: str, classifiers: Sequence[str], energies: Sequence[str]) -> str:
    if name == "classifier" and not classifiers:
        return "classifier guidance: this model has no classifier; train one and give it with `classifier`"
    known = ", ".join([*classifiers, *energies]) or "none"
    example = "colour([0.8, -0.6, -0.6])" if name == "energy" else f"colour([0.8, -0.6, -0.6], name='{name}')"
    remedy = f'give `classifier` {name}=FOLDER, or `energy` "{example}"'
    return f"`guidance`: no classifier or energy {name!r}; there are: {known}; {remedy}"


def _perturbations(config: SamplingConfig, needed: set[str], unet: Backbone) -> dict[str, Perturbation]:
    """The perturbations of the branches that are needed; `UserError` for what this U-Net lacks."""
    perturbations = {}
    for name, kind in PERTURBED.items():
        if name in needed:
            layers = unet.perturbable_layers(kind, config.skipped_layers if kind == "skip" else config.perturbed_layers)
            sigma = {} if kind != "blur" or config.blur_sigma is None else {"sigma": config.blur_sigma}
            try:
                perturbations[name] = Perturbation(kind, layers, **sigma)
            except ValueError:
                raise UserError(f"expected a number above 0, got {config.blur_sigma}", setting="blur_sigma") from None
    return perturbations
