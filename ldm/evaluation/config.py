"""What to measure, on how many images, with which features."""

from dataclasses import dataclass
from pathlib import Path

from ldm.runtime.errors import UserError
from ldm.runtime.text import suggest

OF_FOLDERS = ("fid", "kid", "sliced_fid", "fid_infinity", "precision", "recall", "density", "coverage")
DISTANCES = (*OF_FOLDERS, "inception_score", "diversity", "clip_score")  # what is measured of samples
_EXTRACTORS = ("auto", "inception", "trained", "dinov2", "clip")
METRICS = (*DISTANCES, "memorisation", "calibration", "bits_per_dim", "bits_per_code")


@dataclass(frozen=True)
class EvaluationConfig:
    """What to measure, on how many images, with which features."""

    metrics: tuple[str, ...] = ("fid", "kid")
    """Distances between real and generated images: fid (Frechet), sliced_fid (along random directions), fid_infinity
    (extrapolated to infinitely many images), kid (kernel). precision, density: how many samples lie where the data is;
    recall, coverage: how much of the data they reach. inception_score: by the judge's classes; diversity: mean distance
    of samples of one condition; clip_score: how well pictures fit their captions, 100 max(cos, 0) of CLIP's embeddings.
    memorisation: how near samples are to training images, against how near held-out images are (with `output` also a
    picture of the nearest). Of real images, and alone without samples: calibration, how far the confidence of the judge
    and of the classifier can be believed; bits_per_dim, their likelihood; bits_per_code, that of their codes under a
    prior."""
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
    """Take a `reference` of other images than `data` and `split`; the manifest tells of what."""
    floor: bool = True
    """Also measure real images that are not the reference, as many as samples: what a model of the data itself has."""
    bootstrap: int = 100
    """Half-samples from which 95 % intervals of the distances are made, the reference being held; 0: no intervals."""
    judge: bool = True
    """Also measure how often a judge, trained on the data set's attributes or labels, finds what was asked for."""

    @property
    def distances(self) -> tuple[str, ...]:
        """The metrics that compare samples with images."""
        return tuple(name for name in self.metrics if name in DISTANCES)

    @property
    def near(self) -> bool:
        """Whether memorisation is asked for, which needs features as distances do."""
        return "memorisation" in self.metrics

    @property
    def without_samples(self) -> bool:
        """Whether nothing is asked for that needs samples."""
        return bool(self.metrics) and not self.distances and not self.near

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise UserError(f"unknown metric {name!r}", remedy=suggest(name, METRICS), setting="metrics")
        for name, least in (("num_images", 4), ("num_reference", 4), ("batch_size", 1), ("seed", 0), ("bootstrap", 0)):
            if getattr(self, name) < least:
                raise UserError(f"expected {least} or more, got {getattr(self, name)}", setting=name)
        named = ("extractor", self.extractor, _EXTRACTORS), ("clip_model", self.clip_model, ("clip",))
        for flag, name, known in named:
            local = name.startswith((".", "/", "~")) or Path(name).is_dir()
            if name not in known and not local and name.count("/") != 1 and (name or flag == "extractor"):
                raise UserError(
                    f"unknown {name!r}",
                    remedy=f"{suggest(name, known)}, or a folder, or ORG/NAME of the hub",
                    setting=flag,
                )
