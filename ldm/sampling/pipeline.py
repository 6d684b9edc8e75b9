"""A model folder as one object: load, generate, encode, decode, save."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from autoencoders import Autoencoder, Tiling
from ldm.conditioning.conditioner import Conditioner
from ldm.models.backbone import Backbone, load_backbone
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.files import atomic_folder, atomic_write_json, read_json
from ldm.sampling.autoguidance import GuidingModel, load_guiding_model, read_guiding_model
from ldm.sampling.branches import build_denoiser, with_energies
from ldm.sampling.checks import check_channels, check_requests
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.defaults import FILE as DEFAULTS_FILE
from ldm.sampling.defaults import SamplingDefaults, defaults_of_dropout, read_defaults
from ldm.sampling.denoiser import Denoiser
from ldm.sampling.effects import Effect
from ldm.sampling.finite import CheckedEvaluate, first_non_finite, or_nan
from ldm.sampling.forward_process import Process
from ldm.sampling.image_model import ImageModel, OnStep, check_kind
from ldm.sampling.model_folder import (
    Classifiers,
    LoadedClassifier,
    check_parts,
    copy_part,
    given_classifiers,
    read_classifier,
    read_scheduler,
    stored_classifiers,
)
from ldm.sampling.model_manifest import check_manifest, manifest_of, write_manifest
from ldm.sampling.networks import Networks
from ldm.sampling.notes import condition_notes, guidance_notes
from ldm.sampling.plan import Energies, SamplingPlan, resolve
from ldm.sampling.publication import reading
from ldm.sampling.start import PathNoise, Start, noise_of
from samplers import SampleNoise
from samplers.level import NamedBranches


class Pipeline(ImageModel[SamplingPlan]):
    """A trained latent diffusion model. Images are (B, 3, H, W) in [-1, 1], latents (B, C, h, w) of unit variance.

    `networks` are its parts: the autoencoder, the U-Net, the conditioner, the noise process, and where there are any
    the classifiers and the guiding model of autoguidance.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        unet: Backbone,
        conditioner: Conditioner,
        process: Process,
        *,
        classifiers: Mapping[str, LoadedClassifier] | None = None,
        guiding_model: GuidingModel | None = None,
        device: torch.device | str = "auto",
    ) -> None:
        self.device = resolve_device(device)
        self.networks = Networks(autoencoder, unet, conditioner, process, dict(classifiers or {}), guiding_model)
        for network in self.networks.modules():
            network.to(self.device).eval().requires_grad_(False)
            if self.device.type == "cuda":
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.class_names = self.networks.class_names
        self.has_text, self.has_classes = self.networks.has_text, self.networks.has_classes
        self.autocast = torch.bfloat16 if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else None
        self._defaults: SamplingDefaults | None = None  # that its folder holds
        self.tiling = Tiling()  # of `encode` and `decode`: set it to save memory

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str = "auto",
        classifier: Classifiers | None = None,
        weak: str | Path | None = None,
        ignore_manifest: bool = False,
    ) -> Pipeline:
        """Load a model or run folder.

        `classifier`: folders of classifier trainings where they stand apart, several as a list (the branches
        "classifier", "classifier2", ..., or the names of NAME=FOLDER) or by name. `weak`: the network of autoguidance,
        another model or run folder or RUN/checkpoint-STEP. `ignore_manifest`: take folders as they are where they are
        not as they were published. Raises `UserError` for a missing or damaged part, and for a classifier or a guiding
        model of other latents than the U-Net's.
        """
        with reading(folder):
            root = check_parts(folder)
            defaults = read_defaults(root)
            with user_errors(folder):
                autoencoder = Autoencoder.from_pretrained(root / "vae")
                unet = load_backbone(root / "unet")
                conditioner = Conditioner.from_pretrained(root)
            process, stored_weak = read_scheduler(root), read_guiding_model(root, unet)
            check_channels(root, unet, autoencoder.latent_channels, process)
            fingerprint, size, names = autoencoder.fingerprint(), unet.config.sample_size, conditioner.class_names
            classifiers = {
                name: read_classifier(path, what, fingerprint, size, names, ignore_manifest=ignore_manifest)
                for name, (path, what) in {**stored_classifiers(root), **given_classifiers(classifier)}.items()
            }
            check_manifest(root, autoencoder=fingerprint, class_names=names, ignore=ignore_manifest)
        if len({loaded.class_names for loaded in classifiers.values()}) > 1:
            remedy = "give those of one data set"
            raise UserError("the classifiers are of different classes", remedy=remedy, setting="classifier")
        given = None
        if weak is not None:
            given = load_guiding_model(weak, autoencoder, unet, ignore_manifest=ignore_manifest)
        pipeline = cls(
            autoencoder,
            unet,
            conditioner,
            process,
            classifiers=classifiers,
            guiding_model=given or stored_weak,
            device=device,
        )
        pipeline.folder, pipeline._defaults = root, defaults
        return pipeline

    def save(self, folder: str | Path) -> None:
        """Write a loaded pipeline, its classifiers and its guiding model included, as one model folder."""
        if self.folder is None:
            raise UserError("only a pipeline that was loaded from a folder can be saved to another")
        source = self.folder
        with atomic_folder(folder) as target:
            for part in ("vae", "unet", "scheduler", "text_encoder", "tokenizer"):
                if (source / part).is_dir():
                    copy_part(source / part, target / part)
            for name, classifier in self.networks.classifiers.items():
                copy_part(classifier.folder, target / ("classifier" if name == "classifier" else f"classifiers/{name}"))
            if self.networks.guiding_model is not None:
                self.networks.guiding_model.save(target)
            if (source / DEFAULTS_FILE).is_file():
                shutil.copy2(source / DEFAULTS_FILE, target)
            atomic_write_json(target / "conditioning.json", self.networks.conditioner.metadata())
            atomic_write_json(target / "model_index.json", read_json(source / "model_index.json"))
            write_manifest(target, manifest_of(target, autoencoder=self.networks.autoencoder.fingerprint()))

    def encode(self, images: Tensor) -> Tensor:
        """Images to latents (the posterior's mean), in the pieces that `tiling` asks for."""
        with torch.no_grad():
            return self.networks.autoencoder.encode(images.to(self.device), tiling=self.tiling).mean.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images, clipped to [-1, 1], in the pieces that `tiling` asks for."""
        return self._decode(latents).clamp(-1, 1)

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        return self.networks.autoencoder.decode(latents.to(self.device), tiling=self.tiling).float()

    @property
    def image_size(self) -> int:
        return self.networks.image_size

    @property
    def defaults(self) -> SamplingDefaults:
        return self._defaults or defaults_of_dropout(self.networks.condition_dropout)

    def resolve(
        self, sampling: SamplingConfig | SamplingPlan | None = None, energies: Energies | None = None
    ) -> SamplingPlan:
        """The settings and a user's own `energies`, as in `generate`, parsed and checked once."""
        if not isinstance(sampling, SamplingPlan):
            return resolve(self.with_defaults(sampling), self.networks, energies)
        if energies:
            raise UserError("a plan has its energies already", remedy="give them to `resolve`", setting="energies")
        return sampling

    def check(self, requests: Sequence[Request], sampling: SamplingConfig | SamplingPlan | None = None) -> None:
        check_requests(requests, self._plan(sampling, requests), self.networks)

    def notes(
        self, requests: Sequence[Request], sampling: SamplingConfig | SamplingPlan | None = None
    ) -> tuple[str, ...]:
        plan, conditioner = self._plan(sampling, requests), self.networks.conditioner
        return (*condition_notes(requests, conditioner), *guidance_notes(requests, plan, conditioner))

    @property
    def drawn_classes(self) -> list[int]:
        return self.networks.conditioner.trained_classes if self.has_classes else super().drawn_classes

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | SamplingPlan | None = None,
        *,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 64,
        on_step: OnStep = None,
        shard: tuple[int, int] = (0, 1),
        batches: Sequence[int] | None = None,
        energies: Energies | None = None,
        start: Start | None = None,
    ) -> Iterator[Tensor]:
        """Draw one image a request, as `ImageModel.generate`.

        Samples depend on `start` too, which begins elsewhere than in pure noise: see `ldm.sampling.editing`; samples on
        a path (`Request.toward`) all depend on (seed, first_index). `evaluations` counts samples x branches.
        `energies` are the user's own differentiable functions by name, (b, 3, H, W) -> (b,), of the decoded, not yet
        clipped estimate of the images, for guidances such as "energy(50, name='mine')"; wrapped in an `Energy` they may
        be of latents or of x_t.
        """
        check_kind(requests)
        if not isinstance(sampling, SamplingPlan):
            sampling = self.with_defaults(sampling, requests)
        plan = self.resolve(sampling, energies)
        self.effects = [Effect(name) for name in plan.guidance_names]
        return super().generate(
            requests,
            plan if start is None else plan.begin_at(start),
            seed=seed,
            first_index=first_index,
            batch_size=batch_size,
            on_step=on_step,
            shard=shard,
            batches=batches,
        )

    def sample_batch(
        self,
        requests: Sequence[Request],
        plan: SamplingPlan,
        seed: int,
        first_index: int,
        position: int,
        on_step: OnStep,
    ) -> Tensor:
        noise, x = self._begin(requests, plan, seed, first_index, position)
        denoiser = self.denoiser(requests, plan)
        for step in plan.solve(with_energies(denoiser, plan, self.networks.autoencoder), x, noise, self.effects):
            x = step.x
            if on_step is not None:
                on_step(step)
        for effect in self.effects:
            effect.finish()
        self.evaluations += denoiser.evaluations
        return or_nan(self._decode(x), x)  # a decoder of codes makes an image of anything

    def where_not_finite(
        self, requests: Sequence[Request], plan: SamplingPlan, seed: int, first_index: int, position: int
    ) -> str:
        """The step and the branch: the batch is drawn once more, with a look at every prediction."""
        noise, x = self._begin(requests, plan, seed, first_index, position)
        evaluate = with_energies(self.denoiser(requests, plan), plan, self.networks.autoencoder)
        branches = evaluate.branches if isinstance(evaluate, NamedBranches) else ()
        checked = CheckedEvaluate(evaluate, branches)
        return first_non_finite(plan.solve(checked, x, noise), checked, plan.levels) or "the decoder of the autoencoder"

    def _begin(
        self, requests: Sequence[Request], plan: SamplingPlan, seed: int, first_index: int, position: int
    ) -> tuple[SampleNoise | PathNoise, Tensor]:
        """The noise of a batch, and its x (B, C, h, w) at the first level."""
        channels, size = self.networks.autoencoder.latent_channels, self.networks.latent_size
        noise = noise_of(requests, seed, first_index, position)
        x = noise.initial((channels, size, size), torch.float32, self.device)
        first = plan.levels[0]
        return noise, math.hypot(first.alpha, first.sigma) * x if plan.start is None else plan.start.begin(x, first)

    def denoiser(self, requests: Sequence[Request], plan: SamplingPlan | None = None) -> Denoiser:
        """The networks under these conditions, one sample each; the branch "cond" is the model's own prediction."""
        return build_denoiser(self.networks, requests, plan or SamplingPlan(), self.autocast)
