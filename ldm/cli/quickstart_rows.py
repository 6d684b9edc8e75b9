"""The rows of the quick start's table: what is sampled, and how much of it a judge finds as it should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ldm.cli.sample_folder import SETTINGS, SampleFolder
from ldm.runtime.files import atomic_write_json, read_json, sha256_of_file
from ldm.runtime.locks import FolderLock
from ldm.runtime.progress import progress
from ldm.sampling.config import Request, ResolvedSampling, SamplingConfig

if TYPE_CHECKING:  # wrong flags are refused before torch is imported
    from torch import Tensor

    from ldm.data.dataset import ImageData
    from ldm.sampling.pipeline import Pipeline

_SEED, _BATCH_SIZE = 1, 64


@dataclass(frozen=True)
class Setup:
    """One row of the table to be: its title and folder, and what is sampled with which attributes expected."""

    title: str
    folder: str
    requests: Sequence[Request]
    sampling: SamplingConfig
    expected: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One row of the table: shares in [0, 1] of samples with the expected attributes, None where none is expected."""

    title: str
    file: str
    shape: float | None
    colour: float | None
    background: float | None
    red: float
    evaluations: int


class _StoredRow(TypedDict):
    row: Row
    samples: str  # SHA-256 of their settings


def setups(data: ImageData, count: int, steps: int) -> list[Setup]:
    """All rows, of `count` samples each."""
    indices, names = [index % len(data) for index in range(count)], data.class_names
    attributes, captions = [data.attributes(i) for i in indices], [Request(data.captions(i)[0]) for i in indices]
    circle, circles = [{"shape": "circle"}] * count, [Request("a large circle")] * count
    not_red = [Request("a large circle", negative_prompt="red")] * count
    classes = [Request(class_label=index % len(names)) for index in range(count)]
    shapes = [{"shape": names[index % len(names)]} for index in range(count)]

    def scale(guidance: float, classifier: float = 0.0) -> SamplingConfig:
        return ResolvedSampling(num_inference_steps=steps, guidance_scale=guidance, classifier_scale=classifier)

    return [
        Setup("full captions, --guidance-scale 1", "captions-scale-1", captions, scale(1.0), attributes),
        Setup("full captions, --guidance-scale 7.5", "captions-scale-7.5", captions, scale(7.5), attributes),
        Setup("'a large circle', 1", "large-circle-scale-1", circles, scale(1.0), circle),
        Setup("'a large circle', 7.5", "large-circle", circles, scale(7.5), circle),
        Setup("'a large circle', 7.5, --negative-prompt red", "large-circle-not-red", not_red, scale(7.5), circle),
        Setup("no guidance, no prompt", "unconditional", [Request()] * count, scale(0.0), shapes),
        Setup("--classifier-scale 15 alone, no prompt", "classifier", classes, scale(0.0, 15.0), shapes),
    ]


def row_of(
    setup: Setup, root: Path, pipeline: Pipeline, model: str, judge: Callable[[Tensor], Sequence[Mapping[str, str]]]
) -> Row:
    """The row, sampled and judged unless it is stored; `model` is the identity of the pipeline.

    The judge looks at the images as they are in their files, so a row that was interrupted is the same.
    """
    stored = root / "rows" / f"{setup.folder}.json"
    metadata = {"model": str(root / "model"), "classifier": "", "seed": _SEED, "first_index": 0}
    requests = list(setup.requests)
    folder = SampleFolder(root / "pictures" / setup.folder, requests, setup.sampling, metadata, {"model": model})
    with FolderLock(folder.folder, work="sampling"):
        missing = folder.missing_batches(_BATCH_SIZE, "others")
        if not missing and stored.is_file():
            record = read_json(stored, _StoredRow)
            if record["samples"] == sha256_of_file(folder.folder / SETTINGS):
                return record["row"]
        batches = pipeline.generate(requests, setup.sampling, seed=_SEED, batch_size=_BATCH_SIZE, batches=missing)
        folder.write(progress(batches, "batches", total=len(missing)), missing, _BATCH_SIZE)
        folder.finish()
        one = pipeline.generate(requests[:1], setup.sampling, seed=_SEED)  # to count its evaluations
        row = _row(setup, judge(folder.images()), len(list(one)) * pipeline.evaluations)
        content = {"row": asdict(row), "samples": sha256_of_file(folder.folder / SETTINGS)}
        atomic_write_json(stored, content)  # written last: the row is done
        return row


def _row(setup: Setup, attributes: Sequence[Mapping[str, str]], evaluations: int) -> Row:
    """The row of samples that a judge finds to have these attributes."""

    def share(name: str) -> float | None:
        pairs = zip(attributes, setup.expected, strict=True)
        hits = [sample[name] == str(expected[name]) for sample, expected in pairs if name in expected]
        return sum(hits) / len(hits) if hits else None

    red = sum(sample["colour"] == "red" for sample in attributes) / len(attributes)
    return Row(setup.title, setup.folder, share("shape"), share("colour"), share("background"), red, evaluations)
