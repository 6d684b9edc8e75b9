"""Whatever draws images has one interface: diffusion pipelines, priors over codes, VAEs and GANs."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from ldm.conditioning.conditioner import class_index
from ldm.runtime.errors import UserError
from ldm.runtime.exhaustion import exhausted, explain_exhaustion
from ldm.sampling.config import Request, ResolvedSampling, SamplingConfig
from ldm.sampling.defaults import SamplingDefaults
from ldm.sampling.effects import Effect
from ldm.sampling.finite import NonFiniteSamplesError
from samplers import Step


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings that a model has parsed and checked, once for all batches; see `ImageModel.resolve`."""

    config: ResolvedSampling


logger = logging.getLogger("ldm")
PlanT = TypeVar("PlanT", bound=Plan)
OnStep: TypeAlias = Callable[[Step], None] | None  # called after each step of a solver


def check_kind(requests: object) -> None:
    """`UserError` for what is not a sequence of requests, with what to give."""
    items = requests if isinstance(requests, Sequence) and not isinstance(requests, str) else [requests]
    wrong = [item for item in items if not isinstance(item, Request)]
    if wrong or items is not requests:
        got = f"got {(wrong or items)[0]!r:.60}"
        remedy = "give one an image, as [Request('a red circle')] * 4"
        raise UserError(f"expected a list of requests, {got}", remedy=remedy, setting="requests")


class ImageModel(ABC, Generic[PlanT]):
    """Draws images (B, 3, H, W) in [-1, 1].

    Settings come as a `SamplingConfig`, or as the plan that `resolve` makes of one. `evaluations` counts the network
    evaluations of the latest `generate`, where they are counted.
    """

    device: torch.device
    class_names: tuple[str, ...] = ()
    """The classes of `Request.class_label`; () for none."""
    has_text: bool = False
    """Whether it is conditioned on prompts."""
    has_classes: bool = False
    """Whether it is conditioned on class labels itself, not through a classifier."""
    supported_settings: tuple[str, ...] = ()
    """Of a model without diffusion: the fields of `SamplingConfig` that change its samples."""
    folder: Path | None = None
    """The model folder that it was loaded from by `Pipeline.load`."""
    evaluations: int = 0
    effects: Sequence[Effect] = ()
    """Of the guidances of the latest `generate`, where they are measured."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Height and width of its images."""

    @property
    def defaults(self) -> SamplingDefaults:
        """What it samples with where the settings leave it open."""
        return SamplingDefaults()

    def with_defaults(
        self, sampling: SamplingConfig | None = None, requests: Sequence[Request] | None = None
    ) -> ResolvedSampling:
        """The model's defaults for what is None in the settings; without guidance where no request has a condition."""
        conditional = requests is None or any(map(self._has_condition, requests))
        return self.defaults.complete(sampling or SamplingConfig(), conditional=conditional)

    def _has_condition(self, request: Request) -> bool:
        """Whether a request has a condition, or a negative one, that the network itself takes."""
        texts = request.prompt, request.negative_prompt, request.toward_prompt
        labels = request.class_label, request.negative_class
        return (self.has_text and any(texts)) or (self.has_classes and labels != (None, None))

    @abstractmethod
    def resolve(self, sampling: SamplingConfig | PlanT | None = None) -> PlanT:
        """The settings parsed and checked; a plan is returned as it is. `UserError` for what this model cannot do."""

    @abstractmethod
    def sample_batch(
        self, requests: Sequence[Request], plan: PlanT, seed: int, first_index: int, position: int, on_step: OnStep
    ) -> Tensor:
        """The images of one batch, on the device, not clipped; its first request is number `position` of the whole
        call. Where a number is not finite the images are not either, or `FloatingPointError` says so.
        """

    def where_not_finite(
        self, requests: Sequence[Request], plan: PlanT, seed: int, first_index: int, position: int
    ) -> str:
        """Where the numbers of a batch whose images are not finite cease to be so."""
        return "the output of the network"

    def check(self, requests: Sequence[Request], sampling: SamplingConfig | PlanT | None = None) -> None:
        """Refuse, before any work, what this model cannot do; `UserError` says what would be right."""
        self._plan(sampling, requests)
        for request in requests:
            if (request.prompt or request.negative_prompt is not None) and not self.has_text:
                settings = ("prompt", "negative_prompt")
                raise UserError("this model takes no text", remedy="leave them out", setting=settings)
            if (request.class_label is not None or request.negative_class is not None) and not self.class_names:
                settings = ("class_label", "negative_class")
                raise UserError("this model knows no classes", remedy="leave them out", setting=settings)

    def notes(self, requests: Sequence[Request], sampling: SamplingConfig | PlanT | None = None) -> tuple[str, ...]:
        """What of these conditions and settings has no effect, a line each; settings stand in backticks."""
        return ()

    @property
    def drawn_classes(self) -> list[int]:
        """The classes to draw where none is named: those that the training had images of."""
        return list(range(len(self.class_names)))

    def _plan(self, sampling: SamplingConfig | PlanT | None, requests: Sequence[Request]) -> PlanT:
        """The plan of these requests."""
        return self.resolve(sampling if isinstance(sampling, Plan) else self.with_defaults(sampling, requests))

    def class_index(self, name: str | int) -> int:
        """The number of a class from its name or number; `UserError` with the known names otherwise."""
        if not self.class_names:
            raise UserError("this model knows no classes", remedy="leave it out", setting="class_label", value=name)
        return class_index(name, self.class_names)

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | PlanT | None = None,
        *,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 64,
        on_step: OnStep = None,
        shard: tuple[int, int] = (0, 1),
        batches: Sequence[int] | None = None,
    ) -> Iterator[Tensor]:
        """Draw one image a request: batches (b, 3, H, W) in [-1, 1] on the device, in order.

        Sample i depends on (seed, first_index + i) and its request alone, not on the batch size: where memory does not
        suffice the first time, half of the images are drawn at once from then on, and a warning says so. `batches` are
        the numbers of those to draw; all by default. With `shard` (rank, count) only every count-th of them is drawn,
        from the `rank`-th on. `on_step` is called after each step of a solver. Raises `UserError` as `check`, before
        the first batch, and `NonFiniteSamplesError` instead of images that are not finite.
        """
        check_kind(requests)
        plan = self._plan(sampling, requests)
        self.check(requests, plan)
        self.evaluations = 0
        all_requests, at_once = list(requests), batch_size

        def images_of(batch: Sequence[Request], position: int) -> Tensor:
            pieces = []
            for start in range(0, len(batch), at_once):
                piece = batch[start : start + at_once]
                pieces.append(self._finite_batch(piece, plan, seed, first_index, position + start, on_step))
            return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

        numbers = range(-(-len(all_requests) // batch_size)) if batches is None else batches

        def sampled() -> Iterator[Tensor]:
            nonlocal at_once
            for position in (number * batch_size for number in numbers[shard[0] :: shard[1]]):
                batch = all_requests[position : position + batch_size]
                evaluations = self.evaluations
                try:
                    images = images_of(batch, position)
                except (MemoryError, RuntimeError) as error:
                    if not exhausted(error) or at_once < batch_size or len(batch) == 1:
                        raise
                    images = None
                if images is None:  # here, where the error no longer holds the tensors of the failed call
                    at_once, self.evaluations = -(-len(batch) // 2), evaluations
                    logger.warning("out of memory with %d images at once: going on with %d", len(batch), at_once)
                    images = images_of(batch, position)
                yield images

        def explained() -> Iterator[Tensor]:
            with explain_exhaustion("lower `batch_size`, or decode in pieces by `slicing` and `tile`"):
                yield from sampled()

        return explained()

    @torch.no_grad()
    def _finite_batch(
        self, requests: Sequence[Request], plan: PlanT, seed: int, first_index: int, position: int, on_step: OnStep
    ) -> Tensor:
        origin = "the decoder"
        try:
            images = self.sample_batch(requests, plan, seed, first_index, position, on_step)
            if images.isfinite().all():  # a batch waits for its device here, once
                return images.clamp(-1, 1)
        except FloatingPointError as error:
            origin = str(error)
        origin = self.where_not_finite(requests, plan, seed, first_index, position) or origin
        problem = f"the samples are not finite numbers; the first that is not: {origin}"
        raise NonFiniteSamplesError(
            problem, remedy="lower the scales of the guidances, or look at the weights of the model"
        )
