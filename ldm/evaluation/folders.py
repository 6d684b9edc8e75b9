"""Evaluate one folder of images against another, or against a reference file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.baseline import RealBaseline, baseline_of_data, baseline_of_features, baseline_of_halves
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import Evaluators, prepare_extractor
from ldm.evaluation.features.appearance import Appearance
from ldm.evaluation.features.extractors import Extractor
from ldm.evaluation.features.feature_cache import chosen_indices, features_of
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.folder_images import FolderImages
from ldm.evaluation.manifest import cautions, describe_evaluators
from ldm.evaluation.metrics.base import MetricContext, Samples, check_metrics, measure_samples
from ldm.evaluation.records import EvaluationResult
from ldm.evaluation.references import opened_reference
from ldm.evaluation.registry import metrics as registry
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

_NEEDS = frozenset({"features", "real_features", "pixels"})
Sizes = Counter[tuple[int, int]]  # how many images there are of each (H, W)


def evaluate_folders(
    real: str | Path | ImageData | None,
    fake: str | Path,
    config: EvaluationConfig | None = None,
    *,
    device: torch.device | str = "auto",
    evaluators: Evaluators | None = None,
    resize: int | None = None,
    on_read: Callable[..., None] | None = None,
    max_bad_images: int = 0,
    train_data: ImageData | None = None,
    other_data: ImageData | None = None,
) -> EvaluationResult:
    """Distances of all images of the folder `fake` from those of `real`, or with None from the `reference`.

    `real` is a folder, or the split of a data set. `on_read` is called with the `DataReport` of each of them before the
    images are measured.

    Without Inception's weights the features are trained on `real`; where that is a data set, on `train_data`, and the
    baseline is that of `other_data`, all as in `evaluate_model`, with whose figures these then compare.

    `UserError` for images of more than one size, unless all are to be resized to `resize` x `resize` pixels (bicubic,
    antialiased): a distance depends on it.
    In each folder `max_bad_images` files may be left out that are not whole images; they are named in the log.
    """
    config = config or EvaluationConfig()
    foreign = [name for name in config.metrics if not registry.info(name).needs <= _NEEDS]
    if foreign or not config.metrics:
        known = ", ".join(name for name in registry.names() if registry.info(name).needs <= _NEEDS)
        reason = f"{foreign[0]} needs a model" if foreign else "none is named"
        raise UserError(f"two folders can only be compared by {known}, and {reason}", setting="metrics")
    if (real is None) == (not config.reference):
        raise UserError("give the real images either as `real` FOLDER or as `reference` FILE")
    file = opened_reference(config)
    data = None if real is None or isinstance(real, str | Path) else real
    theirs = FolderImages(real, resize, max_bad_images) if isinstance(real, str | Path) else None
    ours = FolderImages(fake, resize, max_bad_images)
    num_reference = len(theirs) if theirs is not None else file.count if file is not None else 0
    num_reference = num_reference if data is None else min(config.num_reference, len(data))
    check_metrics(config.metrics, MetricContext(config, len(ours), num_reference))
    size = file.metadata.image_size if file is not None else 0
    sizes = _checked_sizes(theirs, ours, size if data is None else data.image_size)
    if on_read is not None:
        on_read(*(folder.report for folder in (data, theirs, ours) if folder is not None))
    if evaluators is None or evaluators.extractor is None:
        trained_on = theirs if data is None else train_data or data
        evaluators = Evaluators(prepare_extractor(trained_on, config, device=device), None)
    extractor = evaluators.extractor
    assert extractor is not None
    a: Tensor | Gaussian
    if data is not None:
        chosen = chosen_indices(len(data), config.num_reference, config.seed)
        a = features_of(extractor, data, chosen, batch_size=config.batch_size, label="features of the data")
    elif theirs is not None:
        a, real_looks = _extracted(extractor, theirs.images(config.batch_size, "features of real"))
    elif file is not None:
        a = file.real_for(extractor)
    b, looks = _extracted(extractor, ours.images(config.batch_size, "features of fake"))
    if data is not None:
        about: dict[str, Any] = {"data": data.name, "split": data.split, "data_fingerprint": data.fingerprint}
        about |= {"image_size": data.image_size}
    else:
        about = {"real": theirs.name if theirs is not None else printable(Path(config.reference).name)}
    manifest = describe_evaluators(evaluators) | about
    manifest |= {
        "fake": ours.name,
        "num_reference": len(a) if isinstance(a, Tensor) else a.count,
        "num_images": len(b),
        "sizes": [{f"{w}x{h}": count for (h, w), count in counts.most_common(8)} for counts in sizes],
        "resized": f"to {resize} x {resize}, bicubic antialiased" if resize else "no",
        "seed": config.seed,
    }
    baseline = RealBaseline()
    if data is not None:
        other = train_data if other_data is None else other_data
        baseline = baseline_of_data(other, data, a, replace(config, num_images=len(b)), evaluators)
    elif isinstance(a, Tensor) and theirs is not None:
        baseline = baseline_of_halves(a, config, evaluators, len(b), real_looks) if config.floor else baseline
    elif file is not None:
        manifest["reference"] = file.manifest()
        others = file.others.to(b.device)
        name = f"real, of {printable(file.metadata.data)} ({printable(file.metadata.others_split)})"
        baseline = baseline_of_features(others, a, config, evaluators, len(b), name)
    return EvaluationResult(
        measure_samples(Samples(a, b, extractor, appearance=looks), config),
        manifest | {"floor": baseline.provenance},
        warnings=cautions(len(b), manifest["num_reference"], evaluators),
        baseline=baseline.figures,
    )


def _extracted(extractor: Extractor, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Features (N, D) and appearance (N, 4) of a stream of image batches."""
    looks = Appearance(extractor.device)
    pairs = [(extractor(batch), looks(batch)) for batch in batches]
    return torch.cat([features for features, _ in pairs]), torch.cat([appearance for _, appearance in pairs])


def _checked_sizes(real: FolderImages | None, fake: FolderImages, size: int) -> tuple[Sizes, ...]:
    """The sizes of the files; `UserError` where they are not one, nor that of the reference (0: any), and they are not
    resized."""
    folders = [folder for folder in (real, fake) if folder is not None]
    counts = tuple(folder.sizes() for folder in folders)
    for folder, sizes in zip(folders, counts, strict=True):
        if len(sizes) > 1 and not folder.resize:
            problem = f"{printable(folder.folder)}: holds images of {_sizes_text(sizes)}"
            raise UserError(problem, remedy="give `resize` PIXELS, or one size")
    if real is not None and counts[0].keys() != counts[1].keys() and not fake.resize:
        problem = (
            f"has images of {_sizes_text(counts[0])}, `fake` of {_sizes_text(counts[1])}: a distance depends on it"
        )
        raise UserError(problem, remedy="give `resize` PIXELS, or images of one size", setting="real")
    given = [(fake.resize, fake.resize)] if fake.resize else list(counts[-1])
    if size and given != [(size, size)]:
        problem = f"has images of {_sizes_text(Counter(given))}, the reference is of {size} x {size}"
        raise UserError(problem, remedy=f"give `resize` {size}, or a reference of that size", setting="fake")
    return counts


def _sizes_text(sizes: Sizes) -> str:
    texts = [f"{w} x {h}" for (h, w), _ in sizes.most_common(4)]
    return ", ".join(texts) + (f" and {len(sizes) - 4} more sizes" if len(sizes) > 4 else "")
