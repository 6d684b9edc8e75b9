"""The networks of a model, and the branches of them that guidances ask for: what there is, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from autoencoders import Autoencoder
from ldm.conditioning import Condition, Conditioner, class_id
from ldm.models.perturbation import Kind, Perturbation
from ldm.models.unet import UNet
from ldm.runtime.compilation import check_compiler, compile_network
from ldm.runtime.errors import UserError
from ldm.sampling.autoguidance import GuidingModel
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.denoiser import Branch, ClassifierBranch, Denoiser
from ldm.sampling.energies import Energy, energy_names
from ldm.sampling.forward_process import Process
from ldm.sampling.model_folder import LoadedClassifier
from samplers import (
    Classifier,
    ClassifierFree,
    Evaluate,
    Guidance,
    ScaledDifferenceGuidance,
    parse_guidance,
    with_energy,
)

PERTURBED: dict[str, Kind] = {"perturbed": "identity", "blurred": "blur", "skipped": "skip"}
_SETTINGS_OF = {
    "perturbed_layers": ({"perturbed", "blurred"}, "pag(3)"),
    "blur_sigma": ({"blurred"}, "seg(3)"),
    "skipped_layers": ({"skipped"}, "slg(3)"),
}


@dataclass(frozen=True)
class Networks:
    """All that a pipeline samples with. `classifiers` are the classifiers by the names of their branches."""

    autoencoder: Autoencoder
    unet: UNet
    conditioner: Conditioner
    process: Process
    classifiers: Mapping[str, LoadedClassifier] = field(default_factory=dict)
    guiding_model: GuidingModel | None = None

    def modules(self) -> list[nn.Module]:
        """Each network once."""
        weak = [] if self.guiding_model is None else [self.guiding_model.unet, self.guiding_model.conditioner]
        return [
            self.autoencoder,
            self.unet,
            self.conditioner,
            *weak,
            *(guide.network for guide in self.classifiers.values()),
        ]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of the U-Net, else of the classifiers, else of the weak network, else of nothing: ()."""
        guided = next((guide.class_names for guide in self.classifiers.values()), ())
        return (
            self.conditioner.class_names
            or guided
            or (self.guiding_model.conditioner.class_names if self.guiding_model else ())
        )

    @property
    def condition_dropout(self) -> float:
        """How often the condition was left out in training; 0 of an unconditional model, which has none."""
        conditioned = self.conditioner.has_text or self.conditioner.num_classes > 0
        return self.conditioner.dropout if conditioned else 0.0

    def class_id(self, name: str | int) -> int:
        """The number of a class from its name or number; `UserError` with the known names otherwise."""
        if not self.class_names:
            raise UserError(f"class {name!r}: this model knows no classes and has no classifier")
        return class_id(name, self.class_names)

    def check(self, requests: Sequence[Request], sampling: SamplingConfig, energies: Mapping[str, Energy]) -> None:
        """Refuse, before any work, what these networks cannot do; `UserError` says what would be right."""
        if not requests:
            raise UserError("nothing to sample: no conditions given")
        check_compiler(sampling.compile, self.conditioner.device)
        self._check_feature_cache(sampling)
        needed, named_branches = needs(sampling), named(sampling)
        self._check_guidances(sampling, needed, energies)
        by_label = set(self.classifiers)
        if self.guiding_model is not None and self.guiding_model.conditioner.num_classes > 0:
            by_label.add("weak")
        uses_labels = self.conditioner.num_classes > 0 or bool(named_branches & by_label)
        for request in requests:
            self._check_request(request, sampling, uses_labels)
        if needed & self.classifiers.keys() and any(request.class_label is None for request in requests):
            raise UserError("classifier guidance needs to know towards what: give `class_label`")
        if "weak" in needed and self.guiding_model is not None:
            self.guiding_model.check({request.class_label for request in requests}, self.class_names)

    def _check_feature_cache(self, sampling: SamplingConfig) -> None:
        if sampling.feature_cache < 1:
            raise UserError(
                f"must be 1 or more, got {sampling.feature_cache}", remedy="1 is exact", setting="feature_cache"
            )
        if sampling.feature_cache > 1 and len(self.unet.config.block_out_channels) == 1:
            raise UserError(
                "this U-Net has one resolution, so nothing below it to keep",
                remedy="leave it out",
                setting="feature_cache",
            )
        if sampling.feature_cache > 1 and sampling.compile != "none":
            raise UserError("not together with `compile`", remedy="leave one of them out", setting="feature_cache")

    def _check_request(self, request: Request, sampling: SamplingConfig, uses_labels: bool) -> None:
        has_text, has_classes = self.conditioner.has_text, self.conditioner.num_classes > 0
        known = f"its classes are {', '.join(self.class_names)}" if has_classes else "it is unconditional"
        if request.prompt and not has_text:
            raise UserError(f"this model was not trained on text ({known})", setting="prompt")
        if request.negative_prompt is not None and not has_text:
            raise UserError(
                f"this model was not trained on text ({known})",
                remedy="use `negative_class`",
                setting="negative_prompt",
            )
        if request.negative_class is not None and not has_classes:
            raise UserError(
                "this model's U-Net knows no classes", remedy="use `negative_prompt`", setting="negative_class"
            )
        if request.class_label is not None:
            self.class_id(request.class_label)
            if not uses_labels:
                raise UserError(
                    "this model's U-Net knows no classes",
                    remedy="add `classifier_scale` or use `prompt`",
                    setting="class_label",
                )
        if request.toward is not None and not 0 <= request.toward <= 1:
            raise UserError(f"a point of a path lies at 0 to 1 of it, got {request.toward}")
        if request.toward_prompt is not None and not has_text:
            raise UserError(f"this model was not trained on text ({known})", setting="interpolate_prompt")
        negative = request.negative_prompt is not None or request.negative_class is not None
        if negative and sampling.guidance_scale in (0, 1) and not sampling.guidance:
            raise UserError("a negative prompt or class acts through `guidance_scale`, which is off", remedy="try 7.5")

    def _check_guidances(self, sampling: SamplingConfig, needed: set[str], energies: Mapping[str, Energy]) -> None:
        gradients = {*self.classifiers, *energies}
        if both := self.classifiers.keys() & energies.keys() or energies.keys() & {
            "cond",
            "uncond",
            "weak",
            *PERTURBED,
        }:
            raise UserError(f"there is a branch {min(both)!r} already", remedy="give name='...'", setting="energy")
        for guidance in guidances(sampling):
            if isinstance(guidance, Classifier) and guidance.scale and guidance.name not in gradients:
                raise UserError(_no_gradient(guidance.name, sorted(self.classifiers), sorted(energies)))
            if isinstance(guidance, ScaledDifferenceGuidance) and guidance.against in gradients:
                raise UserError(
                    f"{guidance.against!r} gives a gradient, not a prediction to compare with", setting="guidance"
                )
        if (sampling.guidance_scale != 1 or "uncond" in needed) and self.condition_dropout == 0:
            why = "this model was trained without condition dropout, so it has no unconditional branch"
            remedy = "use 1, or train with `condition_dropout` 0.1"
            if not (self.conditioner.has_text or self.conditioner.num_classes):
                why, remedy = "this model is unconditional, so there is nothing to guide towards", "use 1"
            flag = f"`guidance_scale` {sampling.guidance_scale}" if sampling.guidance_scale != 1 else "`guidance`"
            raise UserError(f"{flag}: {why}", remedy=remedy)
        if "weak" in needed and self.guiding_model is None:
            raise UserError(
                "no network for the branch 'weak'",
                remedy="give `weak` a model folder or RUN/checkpoint-STEP",
                setting="guidance",
            )
        there = {"uncond", "weak", *PERTURBED, *gradients}
        if unknown := sorted(needed - there):
            raise UserError(
                f"no network for the branch {unknown[0]!r}",
                remedy=f"there are {', '.join(sorted(there))}",
                setting="guidance",
            )
        self._perturbations(sampling, needed)

    def _perturbations(self, sampling: SamplingConfig, needed: set[str]) -> dict[str, Perturbation]:
        """The perturbations of the branches that are needed; `UserError` for what this U-Net lacks."""
        found = {}
        for name, kind in PERTURBED.items():
            if name in needed:
                layers = self.unet.layers(
                    kind, sampling.skipped_layers if kind == "skip" else sampling.perturbed_layers
                )
                sigma = {} if kind != "blur" or sampling.blur_sigma is None else {"sigma": sampling.blur_sigma}
                try:
                    found[name] = Perturbation(kind, layers, **sigma)
                except ValueError:
                    raise UserError(
                        f"expected a number above 0, got {sampling.blur_sigma}", setting="blur_sigma"
                    ) from None
        return found

    def denoiser(
        self, requests: Sequence[Request], sampling: SamplingConfig, device: torch.device, autocast: torch.dtype | None
    ) -> Denoiser:
        """The branches that the settings may ask for, under the conditions of the requests."""
        needed = needs(sampling)
        null = self.conditioner.null(len(requests), device)
        base_is_null = sampling.guidance_scale == 0 and _unguided(sampling)
        conditional = null if base_is_null else self._condition(requests, negative=False)
        negative = any(r.negative_prompt is not None or r.negative_class is not None for r in requests)
        branches: dict[str, Branch | ClassifierBranch] = {"cond": Branch(self.unet, conditional)}
        if "uncond" in needed or self.condition_dropout:  # a plug-in may ask for it without saying so in `needs`
            branches["uncond"] = Branch(self.unet, self._condition(requests, negative=True) if negative else null)
        for name, perturbation in self._perturbations(sampling, needed).items():
            branches[name] = Branch(self.unet, conditional, perturbation)
        if "weak" in needed and self.guiding_model is not None:
            condition = self.guiding_model.condition(requests, self.class_names, null=base_is_null)
            branches["weak"] = Branch(self.guiding_model.unet, condition, process=self.guiding_model.process)
        for name, guide in self.classifiers.items():
            if name in needed:
                labels = torch.tensor([request.class_label for request in requests], device=device)
                branches[name] = ClassifierBranch(guide.network, labels, guide.schedule)
        for network in {self.unet, *([self.guiding_model.unet] if self.guiding_model else [])}:
            compile_network(network, sampling.compile)
        return Denoiser(branches, self.process, autocast, sampling.feature_cache)

    def evaluate(self, denoiser: Denoiser, energies: Mapping[str, Energy]) -> Evaluate:
        """The denoiser with the energies as further branches."""
        evaluate: Evaluate = denoiser
        for name, energy in energies.items():
            function = energy.of_latents(self.autoencoder)
            evaluate = with_energy(evaluate, function, name=name, of=energy.of, jacobian=energy.jacobian)
        return evaluate

    def _condition(self, requests: Sequence[Request], *, negative: bool) -> Condition:
        labels = [request.negative_class if negative else request.class_label for request in requests]
        texts = [(request.negative_prompt or "") if negative else request.prompt for request in requests]
        has_text, has_classes = self.conditioner.has_text, self.conditioner.num_classes > 0
        found = self.conditioner.encode(labels if has_classes else None, texts if has_text else None)
        if negative or found.context is None or all(request.toward_prompt is None for request in requests):
            return found
        ends = [request.prompt if request.toward_prompt is None else request.toward_prompt for request in requests]
        w = found.context.new_tensor([request.toward or 0.0 for request in requests])[:, None, None]  # (B, 1, 1)
        other = self.conditioner.encode(labels if has_classes else None, ends).context
        assert other is not None  # as in `found`
        return Condition(found.class_labels, (1 - w) * found.context + w * other)  # (B, L, D); exact at both ends


def guidances(sampling: SamplingConfig) -> list[Guidance]:
    """The guidances that the settings ask for."""
    found: list[Guidance] = []
    try:
        if not _unguided(sampling):
            found.append(ClassifierFree(sampling.guidance_scale, interval=sampling.guidance_interval))
        if sampling.classifier_scale:
            found.append(Classifier(sampling.classifier_scale, interval=sampling.classifier_interval))
        for text in sampling.guidance:
            guidance = parse_guidance(text)
            if isinstance(guidance, Classifier) and guidance.interval is None:
                guidance = replace(guidance, interval=sampling.classifier_interval)
            found.append(guidance)
    except ValueError as error:
        raise UserError(str(error)) from None
    return found


def needs(sampling: SamplingConfig) -> set[str]:
    """Branches besides "cond" that the guidances may ask for."""
    return {name for each in guidances(sampling) for name in getattr(each, "needs", ())}


def named(sampling: SamplingConfig) -> set[str]:
    """The branches that the guidances speak of, be it at a strength of zero."""
    found = guidances(sampling)
    return {each.against for each in found if isinstance(each, ScaledDifferenceGuidance)} | {
        each.name for each in found if isinstance(each, Classifier)
    }


def check_used(*samplings: SamplingConfig) -> None:
    """`UserError` for a setting of a guidance that none of these settings asks for."""
    used = set[str]().union(*map(named, samplings))
    for sampling in samplings:
        for name in ("temperature", "top_k", "top_p"):
            if getattr(sampling, name) is not None:
                raise UserError("a diffusion model draws no codes", setting=name, remedy="leave it out")
        if unused := [name for name in energy_names(sampling.energy) if name not in used]:
            guidance = "energy(50)" if unused[0] == "energy" else f"energy(50, name='{unused[0]}')"
            raise UserError(f"nothing guides by {unused[0]!r}", remedy=f'add `guidance` "{guidance}"', setting="energy")
        for name, (branches, guidance) in _SETTINGS_OF.items():
            if getattr(sampling, name) not in (None, ()) and not branches & used:
                raise UserError(f'does nothing without a guidance such as "{guidance}"', setting=name)


def _unguided(sampling: SamplingConfig) -> bool:
    """Whether the base prediction is all of classifier-free guidance: at scale 1, and everywhere at scale 0."""
    return sampling.guidance_scale == 1 or (sampling.guidance_scale == 0 and sampling.guidance_interval is None)


def _no_gradient(name: str, classifiers: Sequence[str], energies: Sequence[str]) -> str:
    if name == "classifier" and not classifiers:
        return "classifier guidance: this model has no classifier; train one and give it with `classifier`"
    there = ", ".join([*classifiers, *energies]) or "none"
    example = "colour([0.8, -0.6, -0.6])" if name == "energy" else f"colour([0.8, -0.6, -0.6], name='{name}')"
    return (
        f"`guidance`: no classifier or energy {name!r}; there are: {there}; "
        f'give `classifier` {name}=FOLDER, or `energy` "{example}"'
    )
