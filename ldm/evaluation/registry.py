"""Metrics by name: what each measures and needs, known without importing the code that computes it.

Another installed package adds its own by entry point, in the groups "ldm.metrics" and "ldm.autoencoder_metrics"; the
entry point names a class that it has decorated with `metrics.register` or `autoencoder_metrics.register`.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from ldm.runtime.errors import UserError
from ldm.runtime.text import suggest

_Class = TypeVar("_Class", bound=type[Any])
OF_SAMPLES = frozenset({"features", "class_probs", "captions", "conditions", "pixels"})


@dataclass(frozen=True)
class MetricInfo:
    """One metric: what it measures, the settings that are its own, and what it `needs`.

    Of samples: "features" or "pixels" of them, the judge's "class_probs", "conditions", "captions" (for CLIP); of the
    reference: "real_features" where its moments do not suffice. Of the model or the data: the "training_split" and a
    held-out one, "labels" with a judge or a classifier, "likelihood" (a diffusion model), "codes" (a prior over them).
    Of an autoencoder: "reconstructions", "features", a "perceptual_distance", "codes", a "posterior", a "density".
    """

    name: str
    help: str
    needs: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()
    by_default: bool = True  # of an autoencoder: measured where no metrics are named
    module: str = ""  # that registers its class

    @property
    def of_samples(self) -> bool:
        """Whether it is measured on samples and the reference alone."""
        return bool(self.needs & OF_SAMPLES) and self.needs <= OF_SAMPLES | {"real_features"}


class Registry:
    """The metrics of one kind. A plug-in is imported when its metric is used or listed."""

    def __init__(self, group: str, built_in: Iterable[MetricInfo]) -> None:
        self.group = group
        self._infos = {info.name: info for info in built_in}
        self._built_in = frozenset(self._infos)
        self._classes: dict[str, type[Any]] = {}

    def register(
        self, name: str, *, help: str = "", needs: Iterable[str] = (), options: Iterable[str] = ()
    ) -> Callable[[_Class], _Class]:
        """Registers a class of metrics under a name; a built-in one is described in the table below."""

        def add(metric: _Class) -> _Class:
            known = self._classes.get(name)
            identity = metric.__module__, metric.__qualname__
            again = known is not None and (known.__module__, known.__qualname__) == identity
            if again and name not in self._built_in:  # a cell of a notebook that runs again
                warnings.warn(f"the metric {name!r} is registered anew and replaces the one before", stacklevel=2)
            elif known is not None or (name in self._built_in and self._infos[name].module != metric.__module__):
                raise ValueError(f"the metric {name!r} is registered twice")
            if name not in self._built_in:
                self._infos[name] = MetricInfo(name, help, frozenset(needs), tuple(options), True, metric.__module__)
            self._classes[name] = metric
            return metric

        return add

    def names(self) -> tuple[str, ...]:
        """All names, those of plug-ins last; nothing is imported for it."""
        return tuple(dict.fromkeys([*self._infos, *self._plug_ins()]))

    def check(self, name: str) -> None:
        """`UserError` for a name that no metric has."""
        if name not in self._infos and name not in self.names():
            raise UserError(f"unknown metric {name!r}", remedy=suggest(name, self.names()), setting="metrics")

    def info(self, name: str) -> MetricInfo:
        """What a metric measures and needs; imports the plug-in that has it."""
        self.check(name)
        if name not in self._infos:
            self._load(self._plug_ins()[name])
        return self._infos[name]

    def needing(self, need: str) -> tuple[str, ...]:
        """The names of built-in metrics with this need."""
        return tuple(name for name in self._infos if name in self._built_in and need in self._infos[name].needs)

    def all(self) -> tuple[MetricInfo, ...]:
        """Every known metric, all plug-ins imported."""
        return tuple(self.info(name) for name in self.names())

    def get(self, name: str) -> Any:
        """The metric itself, ready to check and to measure."""
        info = self.info(name)
        if name not in self._classes:
            importlib.import_module(info.module)
        return self._classes[name](info)

    def _plug_ins(self) -> dict[str, EntryPoint]:
        """The entry points by name; `UserError` for two of one name, or for one with the name of a built-in metric."""
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self._built_in or points.setdefault(point.name, point).value != point.value:
                raise UserError(
                    f"plug-in {_package(point)} ({point.value}): the metric {point.name!r} is registered twice",
                    remedy="uninstall one of them",
                )
        return points

    def _load(self, point: EntryPoint) -> None:
        """Import a plug-in; `UserError`, in one line with the package's name, for one that fails."""
        try:
            point.load()
            if point.name not in self._classes:
                raise ValueError(f"registers no metric {point.name!r}")
        except Exception as error:  # a package's import may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            problem = f"plug-in {_package(point)} ({point.value}) cannot be used ({reason})"
            raise UserError(problem, remedy="repair or uninstall it") from None


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value.partition(":")[0]


class RegisteredMetric:
    """A metric by its name: an instance of the class that is registered under it."""

    def __init__(self, info: MetricInfo) -> None:
        self.info, self.name = info, info.name

    def refusal(self, problem: str, remedy: str = "") -> UserError:
        """The error to raise where this metric cannot be measured."""
        return UserError(problem, setting="metrics", value=self.name, remedy=remedy)


def _built_in(package: str, *rows: tuple[str, ...], not_by_default: Collection[str] = ()) -> list[MetricInfo]:
    """From rows of module, name, help, needs and options."""
    infos = []
    for module, name, help, needs, *options in rows:
        path, by_default = f"ldm.evaluation.{package}.{module}", name not in not_by_default
        infos.append(MetricInfo(name, help, frozenset(needs.split()), tuple(options), by_default, path))
    return infos


_SHARE = "how many samples lie where the data is"
_REACH = "how much of the data the samples reach"
metrics = Registry("ldm.metrics", _built_in(
    "metrics",
    ("frechet", "fid", "Frechet distance", "features"),
    ("kid", "kid", "kernel distance", "features real_features"),
    ("frechet", "sliced_fid", "fid along random directions", "features real_features"),
    ("frechet", "fid_infinity", "fid at infinitely many images", "features real_features"),
    ("manifold", "precision", _SHARE, "features real_features"),
    ("manifold", "recall", _REACH, "features real_features"),
    ("manifold", "density", _SHARE, "features real_features"),
    ("manifold", "coverage", _REACH, "features real_features"),
    ("sample_scores", "inception_score", "Inception score of the judge", "class_probs"),
    ("neighbours", "diversity", "distance of samples of one condition", "features conditions"),
    ("sample_scores", "clip_score", "how well images fit captions", "captions", "clip_model"),
    ("appearance", "saturation", "mean saturation of colours, to be near that of real images", "pixels"),
    ("appearance", "contrast", "spread of the brightness, to be near that of real images", "pixels"),
    ("appearance", "clipped", "share of values that are 0 or 255, to be near that of real images", "pixels"),
    ("appearance", "sharpness", "spread of the brightness's Laplacian, to be near that of real images", "pixels"),
    ("memorisation", "memorisation", "how near samples are to training images", "features training_split"),
    ("likelihood", "bits_per_dim", "likelihood of real images", "likelihood",
     "likelihood_images", "bound_steps", "flow_steps", "flow_probes"),
    ("calibration", "calibration", "calibration error of judge and classifiers", "labels"),
    ("code_prior", "bits_per_code", "likelihood of real images' codes", "codes"),
))  # fmt: skip
autoencoder_metrics = Registry("ldm.autoencoder_metrics", _built_in(
    "autoencoder",
    ("quality", "psnr", "peak signal-to-noise ratio in dB", "reconstructions"),
    ("quality", "ssim", "structural similarity", "reconstructions"),
    ("quality", "lpips", "perceptual distance", "reconstructions perceptual_distance",
     "lpips_network", "lpips_weights"),
    ("quality", "rfid", "Frechet distance of reconstructions from originals", "reconstructions features",
     "extractor", "inception_weights", "download_inception"),
    ("latents", "rate", "bits a pixel: entropy of the codes, or KL of the posterior from the prior", "reconstructions"),
    ("latents", "codebook", "share of codes in use, perplexity", "reconstructions codes"),
    ("latents", "active_units", "numbers of the latents that tell images apart", "reconstructions posterior"),
    ("latents", "aggregate_posterior", "distance of all latents from the prior", "reconstructions posterior"),
    ("importance", "iwae", "importance-weighted bound on log p(x)", "density",
     "iwae_samples", "iwae_images", "likelihood_scale"),
    not_by_default=("iwae",),
))  # fmt: skip
