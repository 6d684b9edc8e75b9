"""Images from a prior over codes: codes are drawn one after another, and the decoder makes the image of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoders import Autoencoder
from autoencoders.priors import CodePriors, CodeSampling, PriorCondition
from ldm.conditioning.condition import Condition
from ldm.conditioning.conditioner import Conditioner
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError, user_errors
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.image_model import ImageModel, OnStep, Plan
from ldm.sampling.model_manifest import check_manifest
from ldm.sampling.notes import condition_notes, is_negative
from ldm.sampling.publication import reading
from samplers.noise import stream

PRIOR = "prior"  # the part's folder
SUPPORTED_SETTINGS = ("guidance_scale", "temperature", "top_k", "top_p")  # of SamplingConfig


@dataclass(frozen=True, kw_only=True)
class CodePlan(Plan):
    """`SamplingConfig` resolved for a prior over codes."""

    code_sampling: CodeSampling


class CodePriorModel(ImageModel[CodePlan]):
    """VQ-VAE + PixelCNN, dVAE or VQGAN + transformer, VQ-VAE-2 + a prior a level: one model that draws images.

    Guidance is on the logits, uncond + scale * (cond - uncond); a negative prompt or class takes the place of the null
    condition. `evaluations` counts codes x branches.
    """

    supported_settings = SUPPORTED_SETTINGS

    def __init__(
        self,
        autoencoder: Autoencoder,
        priors: CodePriors,
        conditioner: Conditioner,
        device: torch.device | str = "auto",
    ) -> None:
        """The networks go to the device; the priors must be in evaluation mode."""
        self.device = resolve_device(device)
        self.autoencoder, self.priors = autoencoder.to(self.device), priors.to(self.device)
        self.conditioner = conditioner.to(self.device)
        self.class_names = conditioner.class_names if conditioner.num_classes else ()
        self.has_text, self.has_classes = conditioner.has_text, bool(self.class_names)

    @property
    def image_size(self) -> int:
        return self.priors.shape.levels[0].height * self.autoencoder.factor

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "auto", *, ignore_manifest: bool = False
    ) -> CodePriorModel:
        """Read the output folder of `ldm train prior`; `UserError` for one that lacks a part or is damaged."""
        with reading(folder):
            return cls._load(Path(folder), device, ignore_manifest)

    @classmethod
    def _load(cls, folder: Path, device: torch.device | str, ignore_manifest: bool) -> CodePriorModel:
        for part in ("vae/config.json", f"{PRIOR}/config.json", "conditioning.json"):
            if not (folder / part).is_file():
                remedy = "give the output folder of `ldm train prior`"
                raise UserError(f"{folder}: the model lacks {part}", remedy=remedy)
        with user_errors(folder):
            autoencoder = Autoencoder.from_pretrained(folder / "vae").requires_grad_(False)
            priors = CodePriors.from_pretrained(folder / PRIOR).requires_grad_(False)
            conditioner = Conditioner.from_pretrained(folder).requires_grad_(False)
        levels, sizes = priors.shape.levels, autoencoder.config.codebook_sizes
        if tuple(level.num_codes for level in levels) != sizes:
            raise UserError(f"{folder}: {PRIOR} is not for the codes of its vae, of which there are {sizes}")
        expected = (conditioner.num_classes, conditioner.context_dim)
        if (priors.shape.num_classes, priors.shape.context_dim) != expected:
            raise UserError(f"{folder}: {PRIOR} is not for the conditions of its conditioning.json")
        names, fingerprint = conditioner.class_names, autoencoder.fingerprint()
        check_manifest(folder, autoencoder=fingerprint, class_names=names, ignore=ignore_manifest)
        return cls(autoencoder, priors, conditioner, device)

    def resolve(self, sampling: SamplingConfig | CodePlan | None = None) -> CodePlan:
        if isinstance(sampling, CodePlan):
            return sampling
        config = self.with_defaults(sampling)
        if config.top_k is not None and config.top_k < 1:
            raise UserError(f"expected 1 or more, got {config.top_k}", setting="top_k")
        options: dict[str, Any] = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
        try:
            code_sampling = CodeSampling(**{name: value for name, value in options.items() if value is not None})
        except ValueError as error:
            setting, _, problem = str(error).partition(": ")
            raise UserError(problem, setting=setting) from None
        conditional = self.has_text or self.has_classes
        if config.guidance_scale != 1 and not (conditional and self.conditioner.dropout):
            why = "it was trained without `condition_dropout`" if conditional else "it is unconditional"
            problem, given = f"this model has no null condition ({why})", f"{config.guidance_scale:g}"
            raise UserError(problem, remedy="leave it out", setting="guidance_scale", value=given)
        return CodePlan(config=config, code_sampling=code_sampling)

    def check(self, requests: Sequence[Request], sampling: SamplingConfig | CodePlan | None = None) -> None:
        plan = self.resolve(sampling)
        super().check(requests, plan)
        for request in requests:
            negative = request.negative_prompt is not None or request.negative_class is not None
            if negative and plan.config.guidance_scale == 1:
                settings = ("negative_prompt", "negative_class")
                raise UserError("they act through `guidance_scale`", remedy="raise it", setting=settings)
            if request.toward is not None:
                raise UserError("codes have no path between them", setting=("interpolate_seed", "interpolate_prompt"))

    def notes(self, requests: Sequence[Request], sampling: SamplingConfig | CodePlan | None = None) -> tuple[str, ...]:
        notes, scale = condition_notes(requests, self.conditioner), self.resolve(sampling).config.guidance_scale
        if scale not in (0, 1) and all(is_negative(request, self.conditioner) for request in requests):
            notes.append(f"`guidance_scale` {scale:g} does nothing: the samples have no condition")
        return tuple(notes)

    @property
    def drawn_classes(self) -> list[int]:
        return self.conditioner.trained_classes

    def where_not_finite(
        self, requests: Sequence[Request], plan: CodePlan, seed: int, first_index: int, position: int
    ) -> str:
        """The exception that `codes` raises names the code; else it is the decoder."""
        return ""

    def codes(
        self, requests: Sequence[Request], generators: Sequence[torch.Generator], plan: CodePlan | None = None
    ) -> tuple[Tensor, ...]:
        """Code maps (B, h, w) of the requests, coarse to fine."""
        plan = self.resolve(plan)
        scale, null = self._scale(requests, plan), None
        labels, prompts = [request.class_label for request in requests], [request.prompt for request in requests]
        condition = _encoded(self.conditioner, labels, prompts)
        if scale != 1:
            labels = [request.negative_class for request in requests]
            null = _encoded(self.conditioner, labels, [request.negative_prompt or "" for request in requests])
        with torch.no_grad():
            return self.priors.sample(condition, generators, plan.code_sampling, null=null, guidance_scale=scale)

    def _scale(self, requests: Sequence[Request], plan: CodePlan) -> float:
        """The scale of guidance; 1, the condition alone, where the negative condition is the same."""
        same = all(is_negative(request, self.conditioner) for request in requests)
        return 1.0 if same else plan.config.guidance_scale

    def sample_batch(
        self, requests: Sequence[Request], plan: CodePlan, seed: int, first_index: int, position: int, on_step: OnStep
    ) -> Tensor:
        generators = [stream(seed, first_index + position + row, "codes") for row in range(len(requests))]
        branches = 1 if self._scale(requests, plan) in (0, 1) else 2
        self.evaluations += len(requests) * branches * sum(level.length for level in self.priors.shape.levels)
        return self.autoencoder.decode_codes(self.codes(requests, generators, plan)).float()


def holds_prior(folder: str | Path) -> bool:
    """Whether a folder is that of a prior over codes."""
    return bool(str(folder)) and (Path(folder) / PRIOR).is_dir()


def prior_condition(condition: Condition) -> PriorCondition:
    """The conditioner's output as the priors take it. Padding counts, as it does for the U-Net."""
    return PriorCondition(condition.class_labels, condition.context)


def _encoded(conditioner: Conditioner, labels: Sequence[int | None], texts: Sequence[str]) -> PriorCondition:
    classes, words = labels if conditioner.num_classes else None, texts if conditioner.has_text else None
    return prior_condition(conditioner.encode(classes, words))


@torch.no_grad()
def bits_of_codes(
    priors: CodePriors,
    conditioner: Conditioner,
    codes: Sequence[Tensor],
    requests: Sequence[Request],
    *,
    null: bool = False,
    batch_size: int = 64,
) -> Tensor:
    """-log2 p of given code maps (N, h_l, w_l) under the conditions of requests: (N, levels) float64 on the CPU.

    With `null` the condition is the null condition instead.
    """
    device, rows = next(priors.parameters()).device, []
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        labels = [None if null else request.class_label for request in batch]
        texts = ["" if null else request.prompt for request in batch]
        maps = [level[start : start + len(batch)].to(device) for level in codes]
        nll = priors(maps, _encoded(conditioner, labels, texts))
        rows.append(torch.stack([level.double().sum(1).cpu() for level in nll], 1))
    return torch.cat(rows) / math.log(2)
