"""Pictures from a prior over codes: codes are drawn one after another, and the decoder makes the picture of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from autoencoders import Autoencoder
from autoencoders.priors import CodePriors, CodeSampling, PriorCondition
from ldm.conditioning import Condition, Conditioner
from ldm.runtime.errors import UserError
from ldm.sampling.config import Request, SamplingConfig, check_conditions
from samplers.noise import stream

PRIOR = "prior"  # the part's folder
SUPPORTED_SETTINGS = ("guidance_scale", "temperature", "top_k", "top_p")  # of SamplingConfig


class CodePriorModel:
    """VQ-VAE + PixelCNN, dVAE or VQGAN + transformer, VQ-VAE-2 + a prior a level: one model that draws pictures.

    A `ImageModel` (`ldm.sampling.single_pass`); of its `sampling` settings those in `SUPPORTED_SETTINGS`
    count. Guidance is on the logits, uncond + scale * (cond - uncond); a negative prompt or class takes the place of
    the null condition. `evaluations` counts codes x branches of the latest `generate`.
    """

    has_classifier = False

    supported_settings: tuple[str, ...] = SUPPORTED_SETTINGS

    def __init__(
        self,
        autoencoder: Autoencoder,
        priors: CodePriors,
        conditioner: Conditioner,
        device: torch.device | str = "cpu",
        sampling: SamplingConfig | None = None,
    ) -> None:
        """The networks go to the device; the priors must be in evaluation mode."""
        self.device = torch.device(device)
        self.autoencoder, self.priors = autoencoder.to(self.device), priors.to(self.device)
        self.conditioner, self.sampling = conditioner.to(self.device), sampling or SamplingConfig()
        self.class_names = conditioner.class_names if conditioner.num_classes else ()
        self.has_text = conditioner.has_text
        self.image_size = priors.shape.levels[0].height * autoencoder.factor
        self.evaluations = 0

    @property
    def has_classes(self) -> bool:
        return bool(self.class_names)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> CodePriorModel:
        """Read the output folder of `ldm train prior`; `UserError` for one that lacks a part or is damaged."""
        root = Path(folder)
        for part in ("vae/config.json", f"{PRIOR}/config.json", "conditioning.json"):
            if not (root / part).is_file():
                raise UserError(
                    f"{folder}: the model lacks {part}", remedy="give the output folder of `ldm train prior`"
                )
        try:
            autoencoder = Autoencoder.from_pretrained(root / "vae").requires_grad_(False)
            priors = CodePriors.from_pretrained(root / PRIOR).requires_grad_(False)
            conditioner = Conditioner.from_pretrained(root).requires_grad_(False)
        except UserError:
            raise
        except (ValueError, OSError) as error:
            raise UserError(f"{folder}: {error}") from None
        levels, sizes = priors.shape.levels, autoencoder.config.codebook_sizes
        if tuple(level.num_codes for level in levels) != sizes:
            raise UserError(f"{folder}: {PRIOR} is not for the codes of its vae, of which there are {sizes}")
        prior_condition = (priors.shape.num_classes, priors.shape.context_dim)
        if prior_condition != (conditioner.num_classes, conditioner.context_dim):
            raise UserError(f"{folder}: {PRIOR} is not for the conditions of its conditioning.json")
        return cls(autoencoder, priors, conditioner, device)

    def check(self, requests: Sequence[Request], sampling: SamplingConfig | None = None) -> None:
        """Refuse, before any work, what this model cannot do; `UserError` says what would be right.

        `sampling` takes the place of the model's own from now on.
        """
        self.sampling = sampling or self.sampling
        self.code_sampling()
        scale, conditioner = self.sampling.guidance_scale, self.conditioner
        conditional = self.has_text or bool(self.class_names)
        if scale != 1 and not (conditional and conditioner.dropout):
            why = "it was trained without `condition_dropout`" if conditional else "it is unconditional"
            raise UserError(
                f"`guidance_scale` {scale:g}: this model has no null condition ({why})", remedy="leave it out"
            )
        for request in requests:
            check_conditions(request, text=self.has_text, classes=bool(self.class_names))
            negative = request.negative_prompt is not None or request.negative_class is not None
            if negative and scale == 1:
                raise UserError(
                    "they act through `guidance_scale`",
                    remedy="raise it",
                    setting=("negative_prompt", "negative_class"),
                )
            if request.toward is not None:
                raise UserError("codes have no path between them", setting=("interpolate_seed", "interpolate_prompt"))

    def code_sampling(self) -> CodeSampling:
        """The settings in the form of the priors."""
        own = self.sampling
        given = {name: getattr(own, name) for name in ("temperature", "top_k", "top_p")}
        if own.top_k is not None and own.top_k < 1:
            raise UserError(f"expected 1 or more, got {own.top_k}", setting="top_k")
        try:
            return CodeSampling(**{name: value for name, value in given.items() if value is not None})
        except ValueError as error:
            setting, _, problem = str(error).partition(": ")
            raise UserError(problem, setting=setting) from None

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        *,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 64,
    ) -> Iterator[Tensor]:
        """One image (3, H, W) in [-1, 1] a request, in batches: sample i depends on (seed, first_index + i) alone."""
        self.check(requests, sampling)
        self.evaluations = 0
        return self._batches(list(requests), seed, first_index, batch_size)

    @torch.no_grad()
    def codes(self, requests: Sequence[Request], generators: Sequence[torch.Generator]) -> tuple[Tensor, ...]:
        """Code maps (B, h, w) of the requests, coarse to fine."""
        scale = self.sampling.guidance_scale
        condition = self._condition([each.class_label for each in requests], [each.prompt for each in requests])
        null = None
        if scale != 1:
            labels = [each.negative_class for each in requests]
            null = self._condition(labels, [each.negative_prompt or "" for each in requests])
        return self.priors.sample(condition, generators, self.code_sampling(), null=null, guidance_scale=scale)

    @torch.no_grad()
    def _batches(self, requests: list[Request], seed: int, first_index: int, batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(requests), batch_size):
            chunk = requests[start : start + batch_size]
            generators = [stream(seed, first_index + start + place, "codes") for place in range(len(chunk))]
            branches = 1 if self.sampling.guidance_scale in (0, 1) else 2
            self.evaluations += len(chunk) * branches * sum(level.length for level in self.priors.shape.levels)
            yield self.autoencoder.decode_codes(self.codes(chunk, generators)).float().clamp(-1, 1)

    def _condition(self, labels: Sequence[int | None], texts: Sequence[str]) -> PriorCondition:
        return prior_condition(
            self.conditioner.encode(labels if self.class_names else None, texts if self.has_text else None)
        )


def holds_prior(folder: str | Path) -> bool:
    """Whether a folder is that of a prior over codes."""
    return bool(str(folder)) and (Path(folder) / PRIOR).is_dir()


def prior_condition(condition: Condition) -> PriorCondition:
    """The conditioner's output as the priors take it. Padding counts, as it does for the U-Net."""
    return PriorCondition(condition.class_labels, condition.context)


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

    With `null` the model is told nothing instead.
    """
    device, rows = next(priors.parameters()).device, []
    for start in range(0, len(requests), batch_size):
        part = requests[start : start + batch_size]
        labels = [None if null else each.class_label for each in part]
        texts = ["" if null else each.prompt for each in part]
        condition = conditioner.encode(
            labels if conditioner.num_classes else None, texts if conditioner.has_text else None
        )
        found = priors([level[start : start + len(part)].to(device) for level in codes], prior_condition(condition))
        rows.append(torch.stack([nll.double().sum(1).cpu() for nll in found], 1))
    return torch.cat(rows) / math.log(2)
