"""A model folder as one object: load, generate, encode, decode, save."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from autoencoders import Autoencoder, Tiling
from ldm.conditioning import Conditioner
from ldm.models.classifier import NoisyClassifier
from ldm.models.unet import UNet
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_folder, atomic_write_json, read_json
from ldm.sampling.autoguidance import GuidingModel, load_guiding_model, read_guiding_model
from ldm.sampling.branches import Networks, guidances
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.denoiser import Denoiser
from ldm.sampling.energies import Energy, EnergyContext, Function, all_energies
from ldm.sampling.forward_process import Process, validate_sampler
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
from ldm.sampling.start import PathNoise, Start, noise_of
from samplers import (
    Evaluate,
    Level,
    SampleNoise,
    Schedule,
    Step,
    Target,
    get_sampler,
    guide,
    make_levels,
    parse_sampler,
)

_Solve: TypeAlias = Callable[[Evaluate, Tensor, SampleNoise | PathNoise], Iterator[Step]]
Energies: TypeAlias = Mapping[str, Function | Energy]


class Pipeline:
    """A trained latent diffusion model. Images are (B, 3, H, W) in [-1, 1], latents (B, C, h, w) of unit variance.

    `networks` are its parts: the autoencoder, the U-Net, the conditioner, the noise process, and where there are any
    the classifiers and the weak network of autoguidance.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        unet: UNet,
        conditioner: Conditioner,
        process: Process,
        *,
        classifiers: Mapping[str, LoadedClassifier] | None = None,
        guiding_model: GuidingModel | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.networks = Networks(autoencoder, unet, conditioner, process, dict(classifiers or {}), guiding_model)
        for network in self.networks.modules():
            network.to(self.device).eval().requires_grad_(False)
            if self.device.type == "cuda":
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.autoencoder, self.unet, self.conditioner = autoencoder, unet, conditioner
        self.autocast = torch.bfloat16 if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else None
        self.tiling, self.evaluations = Tiling(), 0  # the first: of `encode` and `decode`, set it to save memory
        self.folder: Path | None = None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        classifier: Classifiers | None = None,
        weak: str | Path | None = None,
    ) -> Pipeline:
        """Load a model or run folder.

        `classifier`: folders of classifier trainings where they stand apart, several as a list (the branches
        "classifier", "classifier2", ..., or as NAME=FOLDER says) or by name. `weak`: the network of autoguidance,
        another model or run folder or RUN/checkpoint-STEP. Raises `UserError` for a missing or damaged part, and for a
        classifier or a weak network of other latents than the U-Net's.
        """
        root = check_parts(folder)
        try:
            autoencoder = Autoencoder.from_pretrained(root / "vae")
            unet = UNet.from_pretrained(root / "unet")
            conditioner = Conditioner.from_pretrained(root)
        except UserError:
            raise
        except (ValueError, OSError) as error:
            raise UserError(f"{folder}: {error}") from None
        facts = autoencoder.fingerprint(), unet.config.sample_size, conditioner.class_names
        classifiers = {
            name: read_classifier(place, what, *facts)
            for name, (place, what) in {**stored_classifiers(root), **given_classifiers(classifier)}.items()
        }
        told = {guide.class_names for guide in classifiers.values()}
        if len(told) > 1:
            raise UserError(
                "the classifiers are of different classes", remedy="give those of one data set", setting="classifier"
            )
        given = None if weak is None else load_guiding_model(weak, autoencoder, unet)
        pipeline = cls(
            autoencoder,
            unet,
            conditioner,
            read_scheduler(root),
            classifiers=classifiers,
            guiding_model=given or read_guiding_model(root, unet),
            device=device,
        )
        pipeline.folder = root
        return pipeline

    def save(self, folder: str | Path) -> None:
        """Write a loaded pipeline, its classifiers and its weak network included, as one model folder."""
        if self.folder is None:
            raise ValueError("only a pipeline that was loaded from a folder can be saved to another")
        source = self.folder
        with atomic_folder(folder) as target:
            for part in ("vae", "unet", "scheduler", "text_encoder", "tokenizer"):
                if (source / part).is_dir():
                    copy_part(source / part, target / part)
            for name, guide in self.networks.classifiers.items():
                copy_part(guide.folder, target / ("classifier" if name == "classifier" else f"classifiers/{name}"))
            if self.networks.guiding_model is not None:
                self.networks.guiding_model.save(target)
            atomic_write_json(target / "conditioning.json", self.conditioner.facts())
            atomic_write_json(target / "model_index.json", read_json(source / "model_index.json"))

    @property
    def process(self) -> Process:
        """The noise process with what the network predicts."""
        return self.networks.process

    @property
    def schedule(self) -> Schedule:
        return self.process.schedule

    @property
    def prediction_type(self) -> Target:
        return self.process.target

    @property
    def classifier(self) -> NoisyClassifier | None:
        """The first of the classifiers."""
        return next((guide.network for guide in self.networks.classifiers.values()), None)

    @property
    def image_size(self) -> int:
        """Height and width of the images that the model was trained on."""
        return self.latent_size * self.autoencoder.factor

    @property
    def latent_size(self) -> int:
        """Height and width of the latents; `UserError` for a foreign U-Net that does not say."""
        size = self.unet.config.sample_size
        if size is None:
            raise UserError(
                "this model's unet/config.json has no sample_size", remedy="write the side of its latents there"
            )
        return size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of the U-Net, else of the classifiers, else of the weak network, else of nothing: ()."""
        return self.networks.class_names

    @property
    def has_text(self) -> bool:
        return self.conditioner.has_text

    @property
    def has_classes(self) -> bool:
        """Whether the U-Net itself is told class labels."""
        return self.conditioner.num_classes > 0

    @property
    def has_classifier(self) -> bool:
        return bool(self.networks.classifiers)

    @property
    def condition_dropout(self) -> float:
        """How often the condition was left out in training; 0 of an unconditional model, which has none."""
        return self.networks.condition_dropout

    def class_id(self, name: str | int) -> int:
        """The number of a class from its name or number; `UserError` with the known names otherwise."""
        return self.networks.class_id(name)

    def encode(self, images: Tensor) -> Tensor:
        """Images to latents (the posterior's mean), in the pieces that `tiling` asks for."""
        with torch.no_grad():
            return self.autoencoder.encode(images.to(self.device), tiling=self.tiling).mean.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images, clipped to [-1, 1], in the pieces that `tiling` asks for."""
        with torch.no_grad():
            return self.autoencoder.decode(latents.to(self.device), tiling=self.tiling).float().clamp(-1, 1)

    def check(
        self, requests: Sequence[Request], sampling: SamplingConfig, energies: Energies | None = None
    ) -> dict[str, Energy]:
        """Refuse, before any work, what this model cannot do; `UserError` says what would be right.

        Returns the energies by name: those of the settings and the given ones, which are as in `generate`.
        """
        around = EnergyContext(self.autoencoder, self.classifier, self.image_size, self.device)
        found = all_energies(energies or {}, sampling.energy, around)
        self.networks.check(requests, sampling, found)
        validate_sampler(self.process, self.levels(sampling), sampling.sampler)
        return found

    def levels(self, sampling: SamplingConfig) -> tuple[Level, ...]:
        """The noise levels that the sampler visits, down to 0."""
        try:
            return make_levels(self.schedule, sampling.num_inference_steps, sampling.spacing)
        except ValueError as error:
            raise UserError(f"{error}", setting=("num_inference_steps", "spacing")) from None

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        *,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 64,
        on_step: Callable[[Step], None] | None = None,
        energies: Energies | None = None,
        start: Start | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Tensor]:
        """Draw one image a request: batches (b, 3, H, W) in [-1, 1] on the device, in order.

        Sample i depends on (seed, first_index + i), its request and `start` alone, not on the batch size; samples on a
        path (`Request.toward`) all depend on (seed, first_index). `start` begins elsewhere than in pure noise: see
        `ldm.sampling.editing`. With `shard` (r, n) only each n-th batch is drawn, from number r on.
        `evaluations` counts network evaluations (samples x branches) of the latest call. `energies` are
        the user's own differentiable functions by name, (b, 3, H, W) -> (b,), of the decoded, not yet clipped estimate
        of the pictures, for guidances such as "energy(50, name='mine')"; wrapped in an `Energy`
        they may be of latents or of x_t. Raises `UserError` as `check`.
        """
        sampling = sampling or SamplingConfig()
        found = self.check(requests, sampling, energies)
        levels = self.levels(sampling) if start is None else start.levels(self.levels(sampling))
        solve = self._solve(sampling, levels, start)
        self.evaluations = 0
        places = range(shard[0] * batch_size, len(requests), shard[1] * batch_size)
        chunks = [(place, list(requests[place : place + batch_size])) for place in places]
        return self._batches(chunks, sampling, levels, solve, found, seed, first_index, on_step, start)

    def _solve(self, sampling: SamplingConfig, levels: Sequence[Level], start: Start | None) -> _Solve:
        """The sampler with its options, levels and guidances: from (evaluate, x, noise) to steps."""
        name, options = parse_sampler(sampling.sampler)
        solver, guided = get_sampler(name).function, guidances(sampling)
        guided += start.guidances if start is not None else []
        return lambda evaluate, x, noise: solver(guide(evaluate, guided), x, levels, noise=noise, **options)

    def _batches(
        self,
        chunks: Sequence[tuple[int, list[Request]]],
        sampling: SamplingConfig,
        levels: Sequence[Level],
        solve: _Solve,
        energies: Mapping[str, Energy],
        seed: int,
        first_index: int,
        on_step: Callable[[Step], None] | None,
        start: Start | None,
    ) -> Iterator[Tensor]:
        size, std = self.latent_size, math.hypot(levels[0].alpha, levels[0].sigma)  # of x_t, for unit latents
        for place, chunk in chunks:
            noise = noise_of(chunk, seed, first_index, place)
            with torch.no_grad():
                denoiser = self.networks.denoiser(chunk, sampling, self.device, self.autocast)
                evaluate = self.networks.evaluate(denoiser, energies)
                x = noise.initial((self.autoencoder.latent_channels, size, size), torch.float32, self.device)
                x = std * x if start is None else start.begin(x, levels[0])
                for step in solve(evaluate, x, noise):
                    x = step.x
                    if on_step is not None:
                        on_step(step)
                images = self.decode(x)
            self.evaluations += denoiser.evaluations
            yield images

    def denoiser(self, requests: Sequence[Request]) -> Denoiser:
        """The networks under these conditions, one sample each, without guidance: branch "cond" is the model's."""
        return self.networks.denoiser(requests, SamplingConfig(), self.device, self.autocast)
