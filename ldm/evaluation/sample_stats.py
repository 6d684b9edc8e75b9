"""What was extracted of samples, and its files: batch by batch, so that stopped work goes on with the next batch."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from ldm.evaluation.features.judge import Score
from ldm.evaluation.metrics.base import MetricResult, ModelEvaluation, ModelMetric
from ldm.evaluation.records import StoredFigure, figures_from_json, finite
from ldm.runtime.files import atomic_write_json, read_json
from ldm.runtime.schema import convert, parse_json
from ldm.runtime.tensors import metadata_text, open_tensors, save_with_digest
from ldm.runtime.text import printable
from samplers.level import short_repr

_ABANDONED = 30 * 24 * 3600  # seconds
logger = logging.getLogger("ldm")


@dataclass(frozen=True)
class SampleStats:
    """What was extracted of `count` samples, what these cost, and the first of them; parts can be joined.

    `features` (count, D), the judge's `class_probs` (count, K), CLIP's `text_scores` (count,) and the `appearance`
    (count, 4) are empty where no metric needs them; `images` (keep, 3, H, W) in [-1, 1] are on the CPU.
    """

    count: int = 0
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    class_probs: Tensor = field(default_factory=lambda: torch.empty(0))
    text_scores: Tensor = field(default_factory=lambda: torch.empty(0))
    scores: Mapping[str, Score] = field(default_factory=dict)
    evaluations: int = 0
    seconds: float = 0.0
    images: Tensor = field(default_factory=lambda: torch.empty(0))
    appearance: Tensor = field(default_factory=lambda: torch.empty(0))

    __repr__ = short_repr

    @classmethod
    def joined(cls, parts: Sequence[SampleStats]) -> SampleStats:
        """All parts in their order."""
        scores: dict[str, Score] = {}
        for part in parts:
            for name, score in part.scores.items():
                scores[name] = scores.get(name, Score()) + score
        return cls(
            sum(part.count for part in parts),
            _cat([part.features for part in parts]),
            _cat([part.class_probs for part in parts]),
            _cat([part.text_scores for part in parts]),
            scores,
            sum(part.evaluations for part in parts),
            sum(part.seconds for part in parts),
            _cat([part.images for part in parts]),
            _cat([part.appearance for part in parts]),
        )

    def cpu(self) -> SampleStats:
        """The same with all tensors on the CPU."""
        tensors = {name: getattr(self, name).cpu() for name in ("features", "class_probs", "text_scores", "appearance")}
        return replace(self, **tensors)


class _StoredMetric(TypedDict):
    """A `MetricResult` in JSON."""

    figures: tuple[StoredFigure, ...]
    manifest: dict[str, Any]
    about: dict[str, Any]


class _StoredStats(TypedDict):
    """The metadata of the file of `save_stats`."""

    count: int
    scores: dict[str, tuple[int, int]]  # right, total
    evaluations: int
    seconds: float
    peak: int | None


def save_stats(path: Path, stats: SampleStats, peak_memory: int | None = None) -> None:
    """Store statistics, with their images if they have any."""
    scores = {name: [score.right, score.total] for name, score in stats.scores.items()}
    cost = {"evaluations": stats.evaluations, "seconds": stats.seconds, "peak": peak_memory}
    metadata = json.dumps({"count": stats.count, "scores": scores, **cost})
    tensors = {"features": stats.features, "opinions": stats.class_probs, "text_scores": stats.text_scores}
    optional = {"images": stats.images, "appearance": stats.appearance}
    tensors |= {name: value for name, value in optional.items() if len(value)}
    save_with_digest(path, tensors, "seen", metadata)


def load_stats(path: Path, max_count: int) -> tuple[SampleStats, int | None]:
    """Statistics and peak memory of `save_stats`; none if the file is absent, damaged or of more samples."""
    if not path.is_file():
        return SampleStats(), None
    try:
        metadata = convert(parse_json(metadata_text(path, "seen")), _StoredStats)
        with open_tensors(path) as file:
            features, class_probs, texts = map(file.get_tensor, ("features", "opinions", "text_scores"))
            stored = set(file.keys())
            optional = {name: file.get_tensor(name) for name in ("images", "appearance") if name in stored}
        scores = {name: Score(*counts) for name, counts in metadata["scores"].items()}
        cost = metadata["evaluations"], metadata["seconds"]
        stats = SampleStats(metadata["count"], features, class_probs, texts, scores, *cost, **optional)
        return (stats, metadata["peak"]) if stats.count <= max_count else (SampleStats(), None)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("%s: damaged (%s), its samples are drawn again", path, printable(error, 120))
        return SampleStats(), None


class StatsStore:
    """A folder with the statistics of each finished batch of samples, and the values of finished metrics.

    Its name must tell apart what they depend on. It is made for the first batch; where it cannot be written, a warning
    says so and nothing is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._writable = folder, True

    def save(self, first: int, stats: SampleStats) -> None:
        """Store a batch whose first sample has this number."""
        self._write(lambda: save_stats(self._path(first), stats))

    def load(self, first: int, count: int) -> SampleStats | None:
        """The batch of `count` samples that begins there, if it is stored."""
        stats, _ = load_stats(self._path(first), count)
        return stats if stats.count == count else None

    def remember(self, name: str, metric: ModelMetric, evaluation: ModelEvaluation) -> MetricResult:
        """The values of a metric, measured unless they are stored."""
        path = self.folder / f"metric-{name}.json"
        if path.is_file():
            stored = read_json(path, _StoredMetric)
            return MetricResult(figures_from_json(stored["figures"]), stored["manifest"], stored["about"])
        values = metric.measure(evaluation)
        content: dict[str, Any] = {"figures": [asdict(value) for value in values.figures]}
        content |= {"manifest": values.manifest, "about": values.about}
        self._write(lambda: atomic_write_json(path, finite(content)))
        return values

    def count(self) -> int:
        """How many samples are stored."""
        return sum(load_stats(path, 2**62)[0].count for path in self.folder.glob("batch-*.safetensors"))

    def remove(self) -> None:
        """Remove the folder: what it was for is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, work: Callable[[], object]) -> None:
        try:
            if self._writable:
                work()
        except OSError as error:
            self._writable = False
            logger.warning("%s (%s): finished samples are not kept should this stop", self.folder, error.strerror)

    def _path(self, first: int) -> Path:
        return self.folder / f"batch-{first:08d}.safetensors"


def _cat(parts: Sequence[Tensor]) -> Tensor:
    filled = [part for part in parts if len(part)]
    return torch.cat([part.to(filled[-1].device) for part in filled]) if filled else torch.empty(0)


def remove_abandoned(root: Path) -> None:
    """Remove the stores in a folder that nothing was written to for 30 days: their work was not gone on with."""
    for folder in root.iterdir() if root.is_dir() else ():
        if time.time() - folder.stat().st_mtime > _ABANDONED:
            shutil.rmtree(folder, ignore_errors=True)
