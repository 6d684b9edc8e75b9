"""The settings of the five trainings. They build nothing: the tasks and `latents.make_process` do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from autoencoders import (
    AdversarialConfig,
    AutoencoderConfig,
    CorruptionConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    PerceptualConfig,
)
from autoencoders.priors import PriorConfig
from ldm.conditioning.config import ConditioningConfig
from ldm.data.config import DataConfig
from ldm.evaluation.periodic_config import DiffusionEvalConfig, EvalConfig
from ldm.models.classifier_config import ClassifierConfig
from ldm.models.unet_config import UNetConfig
from ldm.runtime.errors import TINY, UserError, at_least, in_range
from ldm.training.config import AveragesConfig, TrainingConfig
from samplers.guidance.base import MAX_SCALE
from samplers.level import MAX_TIMESTEPS

_PREDICTIONS: dict[str, tuple[str, ...]] = {"flow": ("flow_prediction",), "edm": ("edm",)}  # of their schedules
_VARIANCE_PRESERVING = ("epsilon", "v_prediction", "sample")  # of all others, the default first


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process and what the network predicts."""

    beta_schedule: Literal["linear", "scaled_linear", "cosine", "flow", "edm"] = "scaled_linear"
    """linear: linear in beta; scaled_linear: linear in sqrt(beta) (Stable Diffusion); cosine: clipped at 0.999; flow:
    rectified flow; edm: x0 + sigma * eps with sigma from 0.002 to 80 (Karras et al. 2022)."""
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    """Unused by cosine, flow and edm."""
    beta_end: float = 0.012
    """Unused by cosine, flow and edm."""
    prediction_type: Literal["auto", "epsilon", "v_prediction", "sample", "flow_prediction", "edm"] = "auto"
    """What the U-Net predicts: epsilon, the noise; v_prediction, the velocity alpha * eps - sigma * x0; sample, x0;
    flow_prediction, the velocity eps - x0; edm, with Karras' preconditioning. auto: epsilon, v_prediction with
    `rescale_betas_zero_snr`, and on flow and edm theirs, the only ones that they take."""
    rescale_betas_zero_snr: bool = False
    """Rescale the betas so that the last level is pure noise, as sampling begins (Lin et al. 2024, Algorithm 1): images
    may then be darker or brighter as a whole. For v_prediction and sample."""
    learn_variance: bool = False
    """The U-Net, with twice the output channels, also learns the variance of each step, by the hybrid loss of Nichol &
    Dhariwal 2021; sample with `sampler` "ddpm(variance='learned')"."""
    snr_gamma: float | None = None
    """min-SNR weighting of the loss with this gamma (5 in the paper); unset: unweighted."""

    def __post_init__(self) -> None:
        in_range(self, num_train_timesteps=(2, MAX_TIMESTEPS), snr_gamma=(TINY, 1e6))
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(f"need 0 < `beta_start` <= `beta_end` < 1, got {self.beta_start} and {self.beta_end}")
        if self.prediction_type not in ("auto", *self._predictions):
            problem = f"with `beta_schedule` {self.beta_schedule} it must be {' or '.join(self._predictions)}"
            raise UserError(problem, setting="prediction_type", value=self.prediction_type)
        for name in ("rescale_betas_zero_snr", "learn_variance"):
            if getattr(self, name) and self.beta_schedule in _PREDICTIONS:
                remedy = "take linear, scaled_linear or cosine, or leave it out"
                raise UserError(f"not with `beta_schedule` {self.beta_schedule}", remedy=remedy, setting=name)
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            problem = "with `rescale_betas_zero_snr` the last level is pure noise, where a noise estimate gives no x0"
            remedy = "take v_prediction or sample"
            raise UserError(problem, remedy=remedy, setting="prediction_type", value="epsilon")

    @property
    def prediction(self) -> str:
        """What the U-Net predicts, with `auto` resolved."""
        if self.prediction_type != "auto":
            return self.prediction_type
        return "v_prediction" if self.rescale_betas_zero_snr else self._predictions[0]

    def fingerprint(self) -> dict[str, Any]:
        """All settings, without those at their default that came later: a run from before them goes on."""
        later = ("rescale_betas_zero_snr", "learn_variance")
        values = dataclasses.asdict(self) | {"prediction_type": self.prediction}
        return {name: value for name, value in values.items() if value or name not in later}

    @property
    def _predictions(self) -> tuple[str, ...]:
        return _PREDICTIONS.get(self.beta_schedule, _VARIANCE_PRESERVING)


@dataclass(frozen=True)
class ObjectiveConfig:
    """Noise levels and noise of the training; the defaults are those of the paper of the process."""

    time_sampling: Literal["auto", "uniform", "log_normal"] = "auto"
    """uniform: all times alike; log_normal: log(sigma / alpha) is normal, which on a flow is the logit-normal of Stable
    Diffusion 3; auto: log_normal for edm, uniform for all others."""
    time_mean: float | None = None
    """Mean of log(sigma / alpha) under log_normal; unset: 0 on a flow, else -0.51 (-1.2 where the spread is 0.5)."""
    time_std: float | None = None
    """Its standard deviation; unset: 1 on a flow, else 1.2."""
    stratified_times: bool = False
    """Spread the times of each batch evenly over their distribution, for a loss of less variance."""
    p2_gamma: float | None = None
    """P2 weighting of the loss with this exponent (1 in the paper); unset: none. Instead of `snr_gamma`."""
    p2_k: float = 1.0
    """The k of P2's weight (k + SNR)^-gamma."""
    offset_noise: float = 0.0
    """Standard deviation of noise that is the same over each whole channel, added to the noise (0.1 is usual): the
    model learns to change the mean of an image."""
    input_perturbation: float = 0.0
    """More noise in the network's input than in its target, by this factor (0.1 in Ning et al. 2023)."""

    def __post_init__(self) -> None:
        in_range(self, p2_gamma=(0, 100), offset_noise=(0, 100), input_perturbation=(0, 100))
        in_range(self, p2_k=(TINY, 1e6), time_std=(TINY, 100), time_mean=(-100, 100))

    def check(self, snr_gamma: float | None, *, log_normal: bool) -> None:
        """`UserError` for settings that contradict each other, or that would have no effect."""
        if self.p2_gamma is not None and snr_gamma is not None:
            raise UserError("`p2_gamma` and `snr_gamma` are two weightings of the same loss", remedy="give one")
        given = [name for name in ("time_mean", "time_std") if getattr(self, name) is not None]
        if given and not log_normal:
            raise UserError("the times are uniform", setting=given[0], remedy="add `time_sampling` log_normal")

    def fingerprint(self) -> dict[str, Any]:
        """What differs from the defaults: a run from before these settings goes on."""
        values, defaults = dataclasses.asdict(self), dataclasses.asdict(ObjectiveConfig())
        return {name: value for name, value in values.items() if value != defaults[name]}


@dataclass(frozen=True)
class AutoencoderRun:
    """`ldm train autoencoder`: compress images into latents and back."""

    dataset: DataConfig = field(default_factory=DataConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation_images: int = 256
    """Held-out images on which PSNR and SSIM are measured."""
    validation_rfid: bool = False
    """Also measure the Frechet distance of held-out images and their reconstructions (rFID where Inception's weights
    are, else of a network trained on the data set), and keep the best model by it in best/."""
    calibration_images: int = 2048
    """Training images on which the mean and standard deviation of the latents are measured."""

    def __post_init__(self) -> None:
        at_least(self, validation_images=1, calibration_images=2)


@dataclass(frozen=True)
class LatentOptions:
    """The latents on which a diffusion model or a classifier is trained."""

    autoencoder: str = ""
    """Output folder of `ldm train autoencoder` (or any folder with a `vae`); identity: diffusion in pixels."""
    ignore_manifest: bool = False
    """Take an autoencoder that is not as it was published, for those who edit models."""
    latents: str = ""
    """Folder of the latent cache, made when absent; unset: <output-dir>/latents; none: encode each batch anew, which
    takes random crops and no disk."""
    cache_device: Literal["auto", "cuda", "cpu", "disk"] = "auto"
    """Where the latents are while training: cuda, cpu (memory), disk (memory-mapped), or auto, the first of these that
    has the room. The training is the same."""


@dataclass(frozen=True)
class DiffusionRun(LatentOptions):
    """`ldm train diffusion`: a U-Net that removes noise from latents, conditioned on classes, text, both or nothing."""

    dataset: DataConfig = field(default_factory=DataConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    averages: AveragesConfig = field(default_factory=AveragesConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: DiffusionEvalConfig = field(default_factory=DiffusionEvalConfig)
    first_caption_probability: float = 0.0
    """Where an image has several captions: how often the first, the fullest of `shapes`, is taken instead of any."""
    validation_images: int = 256
    """Held-out images on which the loss is measured."""
    preview_images: int = 16
    """Samples drawn for each preview image, on fixed seeds."""
    preview_guidance_scale: float | None = None
    """Guidance scale of the previews, where the model has condition dropout. Unset: the model's default, as in `ldm
    sample`."""
    preview_steps: int = 25
    """Sampling steps of the previews."""

    def __post_init__(self) -> None:
        at_least(self, validation_images=1)
        in_range(
            self, preview_images=(0, 4096), preview_steps=(1, MAX_TIMESTEPS), preview_guidance_scale=(0, MAX_SCALE)
        )
        in_range(self, first_caption_probability=(0, 1))
        edm = self.objective.time_sampling == "auto" and self.diffusion.beta_schedule == "edm"
        log_normal = edm or self.objective.time_sampling == "log_normal"
        self.objective.check(self.diffusion.snr_gamma, log_normal=log_normal)
        if self.diffusion.learn_variance:
            self._check_learned_variance()

    def _check_learned_variance(self) -> None:
        """`UserError` for what is not the process whose steps have a variance to learn."""
        objective = self.objective
        if objective.time_sampling == "log_normal":
            raise UserError("its times are not whole steps", setting=("learn_variance", "time_sampling"))
        for name in ("offset_noise", "input_perturbation"):
            if getattr(objective, name):
                raise UserError(f"`{name}` changes the noise, so that it has no such bound", setting="learn_variance")


@dataclass(frozen=True)
class ClassifierRun(LatentOptions):
    """`ldm train classifier`: the class of a latent at any noise level, for classifier guidance."""

    dataset: DataConfig = field(default_factory=DataConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    autoencoder: str = ""
    """Folder of a trained autoencoder, or of the diffusion model to be guided, whose noise schedule is then taken (that
    of Stable Diffusion for a flow or EDM model, which is guided at the times of equal log-SNR); identity: pixels."""
    ignore_manifest: bool = False
    """Take an autoencoder that is not as it was published, for those who edit models."""
    validation_images: int = 512
    """Held-out images on which the accuracy is measured at each noise level."""

    def __post_init__(self) -> None:
        at_least(self, validation_images=1)
        if self.diffusion.learn_variance:
            raise UserError("a classifier predicts no steps", remedy="leave it out", setting="learn_variance")


@dataclass(frozen=True)
class PriorRun:
    """`ldm train prior`: the distribution of an autoencoder's codes, conditioned on classes, text, both or nothing."""

    dataset: DataConfig = field(default_factory=DataConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    autoencoder: str = ""
    """Output folder of `ldm train autoencoder` with a bottleneck of codes: vq and its variants, fsq, lfq, gumbel."""
    ignore_manifest: bool = False
    """Take an autoencoder that is not as it was published, for those who edit models."""
    codes: str = ""
    """Folder of the codes, which are encoded when it is absent; unset: <output-dir>/codes."""
    first_caption_probability: float = 0.0
    """Where an image has several captions: how often the first, the fullest of `shapes`, is taken instead of any."""
    validation_images: int = 1024
    """Held-out images on which the bits a code are measured."""
    preview_images: int = 16
    """Samples drawn for each preview image, on fixed seeds."""

    def __post_init__(self) -> None:
        at_least(self, validation_images=1)
        in_range(self, preview_images=(0, 4096), first_caption_probability=(0, 1))


@dataclass(frozen=True)
class GanRun:
    """`ldm train gan`: a generator of images from noise, and a discriminator that it learns to deceive."""

    dataset: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    discriminator_rounds: int = 1
    """Steps of the discriminator for one of the generator (5 is usual for wgan and wgan_gp); `max_train_steps` counts
    those of the discriminator."""
    validation_images: int = 256
    """Held-out images, and as many generated ones, between which the Frechet distance is measured."""
    validation_fid: bool = False
    """Measure that distance (FID where Inception's weights are, else of a network trained on the data set), and keep
    the best model by it in best/."""

    def __post_init__(self) -> None:
        at_least(self, validation_images=4, discriminator_rounds=1)
