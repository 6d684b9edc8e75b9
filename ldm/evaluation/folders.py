"""Evaluate one folder of images against another, or against a reference file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from ldm.evaluation.baseline import RealBaseline, baseline_of_features, baseline_of_halves
from ldm.evaluation.config import OF_FOLDERS, EvaluationConfig
from ldm.evaluation.evaluators import Evaluators, prepare_extractor
from ldm.evaluation.features.extractors import Extractor, extract
from ldm.evaluation.folder_images import FolderImages
from ldm.evaluation.manifest import cautions, describe_evaluators
from ldm.evaluation.metrics.figures import Samples, check_numbers, figures_of
from ldm.evaluation.metrics.frechet import Gaussian
from ldm.evaluation.records import EvaluationResult
from ldm.evaluation.references import ReferenceFile, opened_reference
from ldm.runtime.errors import UserError
from ldm.runtime.text import printable

Sizes = Counter[tuple[int, int]]  # how many images there are of each (H, W)


def evaluate_folders(
    real: str | Path | None,
    fake: str | Path,
    config: EvaluationConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    evaluators: Evaluators | None = None,
    resize: int | None = None,
) -> EvaluationResult:
    """Distances of all images of the folder `fake` from those of `real`, or with None from the `reference`.

    Without Inception's weights the features are trained on the folder `real`. `UserError` for images of more than one
    size, unless all are to be resized to `resize` x `resize` pixels (bicubic, antialiased): a distance sees the size.
    """
    config = config or EvaluationConfig()
    foreign = [metric for metric in config.metrics if metric not in OF_FOLDERS]
    if foreign or not config.metrics:
        asked = f"{foreign[0]} needs a model" if foreign else "none is asked for"
        raise UserError(f"two folders can only be compared by {', '.join(OF_FOLDERS)}, and {asked}", setting="metrics")
    if (real is None) == (not config.reference):
        raise UserError("give the real images either as `real` FOLDER or as `reference` FILE")
    file = opened_reference(config)
    theirs, ours = None if real is None else FolderImages(real, resize), FolderImages(fake, resize)
    check_numbers(config, len(ours), len(theirs) if theirs is not None else file.count if file is not None else 0)
    sizes = _checked_sizes(theirs, ours, file)
    if evaluators is None or evaluators.extractor is None:
        evaluators = Evaluators(prepare_extractor(theirs, config, device=device), None)
    extractor = evaluators.extractor
    assert extractor is not None
    a = _real(theirs, file, extractor, config)
    b = extract(extractor, ours.images(config.batch_size, "features of fake"))
    manifest = describe_evaluators(evaluators) | {
        "real": theirs.name if theirs is not None else printable(Path(config.reference).name),
        "fake": ours.name,
        "num_reference": len(a) if isinstance(a, Tensor) else a.count,
        "num_images": len(b),
        "sizes": [{f"{w}x{h}": count for (h, w), count in seen.most_common(8)} for seen in sizes],
        "resized": f"to {resize} x {resize}, bicubic antialiased" if resize else "no",
        "seed": config.seed,
    }
    floor = RealBaseline()
    if isinstance(a, Tensor) and theirs is not None:
        floor = baseline_of_halves(a, config, evaluators, len(b)) if config.floor else floor
    elif file is not None:
        manifest["reference"] = file.manifest()
        others = file.others.to(b.device)
        name = f"real, of {printable(file.metadata.data)} ({printable(file.metadata.others_split)})"
        floor = baseline_of_features(others, a, config, evaluators, len(b), name)
    return EvaluationResult(
        figures_of(Samples(a, b, extractor), config),
        manifest | {"floor": floor.provenance},
        warnings=cautions(len(b), manifest["num_reference"], evaluators),
        baseline=floor.figures,
    )


def _real(
    folder: FolderImages | None, file: ReferenceFile | None, extractor: Extractor, config: EvaluationConfig
) -> Tensor | Gaussian:
    if folder is not None:
        return extract(extractor, folder.images(config.batch_size, "features of real"))
    assert file is not None
    return file.real_for(extractor)


def _checked_sizes(real: FolderImages | None, fake: FolderImages, file: ReferenceFile | None) -> tuple[Sizes, ...]:
    """The sizes of the files; `UserError` where they are not one, and nobody asked for resizing."""
    folders = [folder for folder in (real, fake) if folder is not None]
    found = tuple(folder.sizes() for folder in folders)
    for folder, sizes in zip(folders, found, strict=True):
        if len(sizes) > 1 and not folder.resize:
            raise UserError(
                f"{printable(folder.folder)}: holds images of {_told(sizes)}",
                remedy="give `resize` PIXELS, or one size",
            )
    if real is not None and found[0].keys() != found[1].keys() and not fake.resize:
        raise UserError(
            (f"has images of {_told(found[0])}, `fake` of {_told(found[1])}: a distance sees the difference"),
            remedy="give `resize` PIXELS, or images of one size",
            setting="real",
        )
    wanted = file.metadata.image_size if file is not None else 0
    given = [(fake.resize, fake.resize)] if fake.resize else list(found[-1])
    if wanted and given != [(wanted, wanted)]:
        raise UserError(
            (f"has images of {_told(Counter(dict.fromkeys(given, 1)))}, the reference is of {wanted} x {wanted}"),
            remedy=f"give `resize` {wanted}, or a reference of that size",
            setting="fake",
        )
    return found


def _told(sizes: Sizes) -> str:
    each = [f"{w} x {h}" for (h, w), _ in sizes.most_common(4)]
    return ", ".join(each) + (f" and {len(sizes) - 4} more sizes" if len(sizes) > 4 else "")
