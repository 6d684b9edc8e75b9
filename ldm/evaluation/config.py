"""What to measure, on how many images, with which features."""

from dataclasses import dataclass
from pathlib import Path

from ldm.evaluation.registry import OF_SAMPLES
from ldm.evaluation.registry import metrics as registry
from ldm.runtime.errors import LARGEST, LARGEST_BATCH, LARGEST_SEED, UserError, at_least, in_range
from ldm.runtime.text import suggest
from ldm.runtime.values import check_values

APPEARANCE = ("saturation", "contrast", "clipped", "sharpness")
_EXTRACTORS = ("auto", "inception", "trained", "dinov2", "clip")


@dataclass(frozen=True)
class EvaluationConfig:
    """What to measure, on how many images, with which features."""

    metrics: tuple[str, ...] = ("fid", "kid", *APPEARANCE)
    """What to measure; `ldm list metrics` lists what each needs. Distances between real and generated images: fid
    (Frechet), sliced_fid (along random directions), fid_infinity (extrapolated to infinitely many images), kid
    (kernel). precision, density: how many samples lie where the data is; recall, coverage: how much of the data they
    reach. inception_score: by the judge's classes; diversity: mean distance of samples of one condition; clip_score:
    how well images fit their captions, 100 max(cos, 0) of CLIP's embeddings. saturation, contrast, clipped, sharpness:
    how images look, to be near the same of real images, else they are burnt or blurred. memorisation: how near samples
    are to training images, against how near held-out images are (with `output` also an image of the nearest). Of real
    images, and alone without samples: calibration, the calibration error of the judge and of the classifier;
    bits_per_dim, their likelihood; bits_per_code, that of their codes under a prior."""
    num_images: int = 1000
    """Images to generate. Distances depend on it: compare only equal numbers; published FIDs use 50000."""
    num_reference: int = 50000
    """Real images to compare with; drawn at random if there are more."""
    seed: int = 0
    """Seed of the samples, of the choice of conditions and of KID's subsets."""
    batch_size: int = 64
    """Images at a time."""
    extractor: str = "auto"
    """Features: inception (needs its weights; only then are figures called FID and KID), trained (a small network
    trained on the data set, named in every figure), auto: inception where its weights are found; a DINOv2 or a CLIP by
    its folder or its name on the hub (ORG/NAME; dinov2 and clip are facebook/dinov2-large and
    openai/clip-vit-large-patch14), from the hub's cache unless `download_extractor`."""
    clip_model: str = ""
    """clip_score: the CLIP's folder or name on the hub; none given: that of `extractor` if it is one, else clip."""
    download_extractor: bool = False
    """Download a model of `extractor` or `clip_model` that is named by its name on the hub."""
    inception_weights: str | None = None
    """The file inception-2015-12-05.pt; default: where clean-fid keeps it."""
    download_inception: bool = False
    """Download the Inception weights (96 MB) to where clean-fid keeps them, if they are not there."""
    reference: str = ""
    """A file of `ldm evaluate reference` (or with mu and sigma of Inception features, for fid) to compare with, in
    place of features computed now; refused where it is of other images or another extractor."""
    allow_other_reference: bool = False
    """Take a `reference` of other images than `data` and `split`; the manifest names them."""
    floor: bool = True
    """Also measure real images that are not the reference, as many as samples: what the data itself has."""
    bootstrap: int = 100
    """Half-samples from which 95 % intervals of the distances are made, the reference being held; 0: no intervals."""
    judge: bool = True
    """Also measure how often a judge, trained on the data set's attributes or labels, finds those of the condition."""

    @property
    def needs(self) -> frozenset[str]:
        """What the metrics need; see `MetricInfo`."""
        return frozenset[str]().union(*(registry.info(name).needs for name in self.metrics))

    @property
    def sample_metrics(self) -> tuple[str, ...]:
        """The metrics of samples and a reference alone."""
        return tuple(name for name in self.metrics if registry.info(name).of_samples)

    @property
    def model_metrics(self) -> tuple[str, ...]:
        """The others, in the order of the registry."""
        return tuple(name for name in registry.names() if name in self.metrics and name not in self.sample_metrics)

    @property
    def without_samples(self) -> bool:
        """Whether no metric needs samples."""
        return bool(self.metrics) and not self.needs & OF_SAMPLES

    def __post_init__(self) -> None:
        check_values(self)
        for name in self.metrics:
            registry.check(name)
        at_least(self, num_images=4, num_reference=4)
        in_range(self, batch_size=(1, LARGEST_BATCH), seed=(0, LARGEST_SEED), bootstrap=(0, 2**20))
        models = ("extractor", self.extractor, _EXTRACTORS), ("clip_model", self.clip_model, ("clip",))
        for setting, name, known in models:
            local = name.startswith((".", "/", "~")) or Path(name).is_dir()
            if name not in known and not local and name.count("/") != 1 and (name or setting == "extractor"):
                remedy = f"{suggest(name, known)}, or a folder, or ORG/NAME of the hub"
                raise UserError(f"unknown {name!r}", remedy=remedy, setting=setting)


@dataclass(frozen=True)
class LikelihoodConfig:
    """How `metrics` bits_per_dim is measured."""

    likelihood_images: int = 128
    """Held-out images, drawn at random."""
    bound_steps: int = 250
    """Steps of the variational bound, equal in log-SNR; with fewer it is looser. 0: no bound."""
    flow_steps: int = 50
    """Heun steps of the probability-flow ODE, equal in log-SNR. 0: no ODE."""
    flow_probes: int = 2
    """Hutchinson's random vectors an image."""

    def __post_init__(self) -> None:
        check_values(self)
        in_range(
            self, likelihood_images=(2, LARGEST), bound_steps=(0, 2**20), flow_steps=(0, 2**20), flow_probes=(1, 2**16)
        )
        if not self.bound_steps and not self.flow_steps:
            raise UserError("`bound_steps` 0 `flow_steps` 0: nothing to measure", remedy="give one of them")
