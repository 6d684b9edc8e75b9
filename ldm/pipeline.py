"""A model folder as one object: load, generate, encode, decode, save."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from autoencoders import Autoencoder
from ldm.classifier import NoisyClassifier
from ldm.conditioning import Condition, Conditioner
from ldm.denoiser import Branch, ClassifierBranch, Denoiser
from ldm.errors import UserError
from ldm.files import atomic_folder, atomic_write_json, read_json
from ldm.model_folder import check_parts, copy_part, read_classifier, read_scheduler
from ldm.sampling import Request, SamplingConfig
from ldm.start import PathNoise, Start, noise_of
from ldm.unet import UNet
from samplers import (
    Classifier,
    ClassifierFree,
    DiscreteSchedule,
    Guidance,
    Level,
    Prediction,
    SampleNoise,
    Step,
    Target,
    get_sampler,
    guide,
    make_levels,
    parse_guidance,
    parse_sampler,
    x0_from_output,
)

_Solve: TypeAlias = Callable[[Denoiser, Tensor, SampleNoise | PathNoise], Iterator[Step]]


class Pipeline:
    """A trained latent diffusion model. Images are (B, 3, H, W) in [-1, 1], latents (B, C, h, w) of unit variance."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        unet: UNet,
        conditioner: Conditioner,
        schedule: DiscreteSchedule,
        prediction_type: Target,
        *,
        classifier: NoisyClassifier | None = None,
        classifier_names: tuple[str, ...] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        networks = [autoencoder, unet, conditioner, *([classifier] if classifier is not None else [])]
        for network in networks:
            network.to(self.device).eval().requires_grad_(False)
            if self.device.type == "cuda":
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.autoencoder, self.unet, self.conditioner, self.classifier = autoencoder, unet, conditioner, classifier
        self.schedule, self.prediction_type, self.classifier_names = schedule, prediction_type, classifier_names
        self.autocast = torch.bfloat16 if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else None
        self.evaluations = 0
        self._folder: Path | None = None
        self._classifier_folder: Path | None = None

    @classmethod
    def load(
        cls, folder: str | Path, *, device: torch.device | str = "cpu", classifier: str | Path | None = None
    ) -> Pipeline:
        """Load a model or run folder; `classifier` is the folder of a classifier training where it stands apart.

        Raises `UserError` for a missing or damaged part, and for a classifier of other latents than the U-Net's.
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
        schedule, prediction_type = read_scheduler(root)
        noisy: NoisyClassifier | None = None
        names: tuple[str, ...] = ()
        place: Path | None = None
        if classifier is not None or (root / "classifier").is_dir():
            place = Path(classifier) if classifier is not None else root
            size, told = unet.config.sample_size, conditioner.class_names
            noisy, names = read_classifier(place, autoencoder.fingerprint(), schedule, size, told)
        pipeline = cls(
            autoencoder,
            unet,
            conditioner,
            schedule,
            prediction_type,
            classifier=noisy,
            classifier_names=names,
            device=device,
        )
        pipeline._folder, pipeline._classifier_folder = root, place
        return pipeline

    def save(self, folder: str | Path) -> None:
        """Write a loaded pipeline, its classifier included, as one model folder."""
        if self._folder is None:
            raise ValueError("only a pipeline that was loaded from a folder can be saved to another")
        source = self._folder
        with atomic_folder(folder) as target:
            for part in ("vae", "unet", "scheduler", "text_encoder", "tokenizer"):
                if (source / part).is_dir():
                    copy_part(source / part, target / part)
            if self._classifier_folder is not None:
                copy_part(self._classifier_folder / "classifier", target / "classifier")
            atomic_write_json(target / "conditioning.json", self.conditioner.facts())
            atomic_write_json(target / "model_index.json", read_json(source / "model_index.json"))

    @property
    def image_size(self) -> int:
        """Height and width of the images that the model was trained on."""
        return self.latent_size * self.autoencoder.factor

    @property
    def latent_size(self) -> int:
        """Height and width of the latents; `UserError` for a foreign U-Net that does not say."""
        size = self.unet.config.sample_size
        if size is None:
            raise UserError("this model's unet/config.json has no sample_size; write the side of its latents there")
        return size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of the U-Net, else of the classifier, else of nothing: ()."""
        return self.conditioner.class_names or self.classifier_names

    @property
    def has_text(self) -> bool:
        return self.conditioner.has_text

    @property
    def has_classes(self) -> bool:
        """Whether the U-Net itself is told class labels."""
        return self.conditioner.num_classes > 0

    @property
    def has_classifier(self) -> bool:
        return self.classifier is not None

    @property
    def condition_dropout(self) -> float:
        """How often the condition was left out in training; 0 of an unconditional model, which has none."""
        return self.conditioner.dropout if self.has_text or self.has_classes else 0.0

    def class_id(self, name: str | int) -> int:
        """The number of a class from its name or number; `UserError` with the known names otherwise."""
        from ldm.conditioning import class_id

        if not self.class_names:
            raise UserError(f"class {name!r}: this model knows no classes and has no classifier")
        return class_id(name, self.class_names)

    def encode(self, images: Tensor) -> Tensor:
        """Images to latents (the posterior's mean)."""
        with torch.no_grad():
            return self.autoencoder.encode(images.to(self.device)).mean.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images, clipped to [-1, 1]."""
        with torch.no_grad():
            return self.autoencoder.decode(latents.to(self.device)).float().clamp(-1, 1)

    def check(self, requests: Sequence[Request], sampling: SamplingConfig) -> None:
        """Refuse, before any work, what this model cannot do; `UserError` says what would be right."""
        if not requests:
            raise UserError("nothing to sample: no conditions given")
        known = f"its classes are {', '.join(self.class_names)}" if self.has_classes else "it is unconditional"
        for request in requests:
            if request.prompt and not self.has_text:
                raise UserError(f"--prompt: this model was not trained on text ({known})")
            if request.negative_prompt is not None and not self.has_text:
                raise UserError(
                    f"--negative-prompt: this model was not trained on text ({known}); use --negative-class"
                )
            if request.negative_class is not None and not self.has_classes:
                raise UserError("--negative-class: this model's U-Net knows no classes; use --negative-prompt")
            if request.class_label is not None:
                self.class_id(request.class_label)
                if (
                    not self.has_classes
                    and not sampling.classifier_scale
                    and "classifier" not in " ".join(sampling.guidance)
                ):
                    raise UserError(
                        "--class-label: this model's U-Net knows no classes; add --classifier-scale or use --prompt"
                    )
            if request.toward is not None and not 0 <= request.toward <= 1:
                raise UserError(f"a point of a path lies at 0 to 1 of it, got {request.toward}")
            if request.toward_prompt is not None and not self.has_text:
                raise UserError(f"--interpolate-prompt: this model was not trained on text ({known})")
            negative = request.negative_prompt is not None or request.negative_class is not None
            if negative and sampling.guidance_scale in (0, 1) and not sampling.guidance:
                raise UserError("a negative prompt or class acts through --guidance-scale, which is off; try 7.5")
        needed = self._branches_of(sampling)
        if (sampling.guidance_scale != 1 or "uncond" in needed) and self.condition_dropout == 0:
            why = "this model was trained without condition dropout, so it has no unconditional branch"
            remedy = "use 1, or train with --condition-dropout 0.1"
            if not (self.has_text or self.has_classes):
                why, remedy = "this model is unconditional, so there is nothing to guide towards", "use 1"
            flag = f"--guidance-scale {sampling.guidance_scale}" if sampling.guidance_scale != 1 else "--guidance"
            raise UserError(f"{flag}: {why}; {remedy}")
        if unknown := sorted(needed - {"uncond", "classifier"}):
            raise UserError(f"--guidance: no network for the branch {unknown[0]!r}; there are uncond and classifier")
        needs_classifier = "classifier" in needed
        if needs_classifier and self.classifier is None:
            raise UserError(
                "classifier guidance: this model has no classifier; train one and give it with --classifier"
            )
        if needs_classifier and any(request.class_label is None for request in requests):
            raise UserError("classifier guidance needs to know towards what: give --class-label")
        self._rehearse(sampling)

    def _rehearse(self, sampling: SamplingConfig) -> None:
        """Run the sampler's own arithmetic on zeros without the network, so that what it refuses is refused now."""

        def nothing(x: Tensor, level: Level) -> Prediction:
            x0 = x0_from_output(self.prediction_type, torch.zeros_like(x), x, level.alpha, level.sigma)
            return Prediction(x, level, x0)

        levels = self.levels(sampling)
        try:
            name, options = parse_sampler(sampling.sampler)
            x = torch.zeros(1, self.autoencoder.latent_channels, 1, 1, dtype=torch.float64)
            for step in get_sampler(name).function(nothing, x, levels, noise=SampleNoise(0, [0]), **options):
                x = step.x
        except ValueError as error:
            raise UserError(f"--sampler {sampling.sampler}: {error}") from None
        if not torch.isfinite(x).all():
            raise UserError(f"--sampler {sampling.sampler}: gives no finite number on this model's noise schedule")

    def guidances(self, sampling: SamplingConfig) -> list[Guidance]:
        """The guidances that the settings ask for."""
        found: list[Guidance] = []
        try:
            if not self._unguided(sampling):
                found.append(ClassifierFree(sampling.guidance_scale, interval=sampling.guidance_interval))
            if sampling.classifier_scale:
                found.append(Classifier(sampling.classifier_scale, interval=sampling.classifier_interval))
            found.extend(parse_guidance(text) for text in sampling.guidance)
        except ValueError as error:
            raise UserError(str(error)) from None
        return found

    def _unguided(self, sampling: SamplingConfig) -> bool:
        """Whether the base prediction is all of classifier-free guidance: at scale 1, and everywhere at scale 0."""
        return sampling.guidance_scale == 1 or (sampling.guidance_scale == 0 and sampling.guidance_interval is None)

    def _branches_of(self, sampling: SamplingConfig) -> set[str]:
        """Branches besides "cond" that the guidances may ask for."""
        return {name for each in self.guidances(sampling) for name in getattr(each, "needs", ())}

    def levels(self, sampling: SamplingConfig) -> tuple[Level, ...]:
        """The noise levels that the sampler visits, down to 0."""
        try:
            return make_levels(self.schedule, sampling.num_inference_steps, sampling.spacing)
        except ValueError as error:
            raise UserError(f"--num-inference-steps, --spacing: {error}") from None

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        *,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 64,
        on_step: Callable[[Step], None] | None = None,
        start: Start | None = None,
    ) -> Iterator[Tensor]:
        """Draw one image a request: batches (b, 3, H, W) in [-1, 1] on the device, in order.

        Sample i depends on (seed, first_index + i), its request and `start` alone, not on the batch size; samples on a
        path (`Request.toward`) all depend on (seed, first_index). `start` begins elsewhere than in pure noise: see
        `ldm.editing`. `evaluations` counts network evaluations (samples x branches) of the latest call. Raises
        `UserError` as `check`.
        """
        sampling = sampling or SamplingConfig()
        self.check(requests, sampling)
        levels = self.levels(sampling) if start is None else start.levels(self.levels(sampling))
        solve = self._solve(sampling, levels, start)
        self.evaluations = 0
        return self._batches(list(requests), sampling, levels, solve, seed, first_index, batch_size, on_step, start)

    def _solve(self, sampling: SamplingConfig, levels: Sequence[Level], start: Start | None) -> _Solve:
        """The sampler with its options, levels and guidances: from (evaluate, x, noise) to steps."""
        try:
            name, options = parse_sampler(sampling.sampler)
        except ValueError as error:
            raise UserError(f"--sampler: {error}") from None
        solver, guidances = get_sampler(name).function, self.guidances(sampling)
        guidances += start.guidances if start is not None else []
        return lambda evaluate, x, noise: solver(guide(evaluate, guidances), x, levels, noise=noise, **options)

    def _batches(
        self,
        requests: list[Request],
        sampling: SamplingConfig,
        levels: Sequence[Level],
        solve: _Solve,
        seed: int,
        first_index: int,
        batch_size: int,
        on_step: Callable[[Step], None] | None,
        start: Start | None,
    ) -> Iterator[Tensor]:
        size, std = self.latent_size, math.hypot(levels[0].alpha, levels[0].sigma)  # of x_t, for unit latents
        for place in range(0, len(requests), batch_size):
            chunk = requests[place : place + batch_size]
            noise = noise_of(chunk, seed, first_index, place)
            with torch.no_grad():
                denoiser = self._denoiser(chunk, sampling)
                x = noise.initial((self.autoencoder.latent_channels, size, size), torch.float32, self.device)
                x = std * x if start is None else start.begin(x, levels[0])
                for step in solve(denoiser, x, noise):
                    x = step.x
                    if on_step is not None:
                        on_step(step)
                images = self.decode(x)
            self.evaluations += denoiser.evaluations
            yield images

    def denoiser(self, requests: Sequence[Request]) -> Denoiser:
        """The networks under these conditions, one sample each, without guidance: branch "cond" is the model's."""
        return self._denoiser(requests, SamplingConfig())

    def _denoiser(self, requests: Sequence[Request], sampling: SamplingConfig) -> Denoiser:
        null = self.conditioner.null(len(requests), self.device)
        base_is_null = sampling.guidance_scale == 0 and self._unguided(sampling)
        conditional = null if base_is_null else self._condition(requests, negative=False)
        negative = any(r.negative_prompt is not None or r.negative_class is not None for r in requests)
        against = self._condition(requests, negative=True) if negative else null
        branches: dict[str, Branch | ClassifierBranch] = {
            "cond": Branch(self.unet, conditional),
            "uncond": Branch(self.unet, against),
        }
        if self.classifier is not None and all(request.class_label is not None for request in requests):
            labels = torch.tensor([request.class_label for request in requests], device=self.device)
            branches["classifier"] = ClassifierBranch(self.classifier, labels)
        return Denoiser(branches, self.prediction_type, self.autocast)

    def _condition(self, requests: Sequence[Request], *, negative: bool) -> Condition:
        labels = [request.negative_class if negative else request.class_label for request in requests]
        texts = [(request.negative_prompt or "") if negative else request.prompt for request in requests]
        found = self.conditioner.encode(labels if self.has_classes else None, texts if self.has_text else None)
        if negative or found.context is None or all(request.toward_prompt is None for request in requests):
            return found
        ends = [request.prompt if request.toward_prompt is None else request.toward_prompt for request in requests]
        w = found.context.new_tensor([request.toward or 0.0 for request in requests])[:, None, None]  # (B, 1, 1)
        other = self.conditioner.encode(labels if self.has_classes else None, ends).context
        assert other is not None  # as in `found`
        return Condition(found.class_labels, (1 - w) * found.context + w * other)  # (B, L, D); exact at both ends
