"""The manifest of a published model: the files of its parts, the step of its weights, what they were trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ldm.conditioning.config import CONDITIONING_FILE
from ldm.runtime.checksums import Checksums, KnownChecksums, checked_entries, checksums_of, differing_files
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, read_json
from ldm.runtime.text import printable

MANIFEST = "model_manifest.json"
CLASSIFIER_FILE = "classifier/facts.json"  # whose class names count where the model itself has no conditions
_FORMAT, _LISTED = 1, 6  # differences in a message

logger = logging.getLogger("ldm")


@dataclass(frozen=True)
class ModelManifest:
    """What a model folder was published with."""

    files: Checksums = field(default_factory=dict)
    step: int | None = None
    """Of the training, after which the weights are; None for a model that is no run's."""
    autoencoder: str = ""
    """Fingerprint of the autoencoder that the other parts were trained on; "" where there is none."""
    class_names: tuple[str, ...] | None = None
    """Their number and order is that of the class embeddings; None or () for a model without classes."""

    def of_parts(self, parts: Sequence[str]) -> Checksums:
        """The files of these parts; of all where none is named."""
        return {name: entry for name, entry in self.files.items() if not parts or name.split("/")[0] in parts}


def read_manifest(root: Path) -> ModelManifest | None:
    """The manifest of a model folder; None of one without (an older one, or another tool's); `UserError` for a bad one.

    A folder inside a model, such as its `vae`, has none of its own.
    """
    path = root / MANIFEST
    if not path.exists():
        return None
    content = read_json(path)
    try:
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, expected {_FORMAT}")
        step, autoencoder, names = content["step"], content["autoencoder"], content["class_names"]
        if not (step is None or type(step) is int) or not isinstance(autoencoder, str):
            raise ValueError("expected a whole step and the fingerprint of an autoencoder")
        names = None if names is None else tuple(map(str, names))
        return ModelManifest(checked_entries(content["files"]), step, autoencoder, names)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{path}: not the manifest of a model ({printable(error, 120)})"
        raise UserError(problem, remedy="restore it, or remove it to do without") from None


def write_manifest(root: Path, manifest: ModelManifest) -> None:
    """Write the manifest into a model folder that is not in its position yet; see `ldm.sampling.publication`."""
    atomic_write_json(root / MANIFEST, {"format": _FORMAT, **asdict(manifest)})


def manifest_of(root: Path, *, step: int | None = None, autoencoder: str = "") -> ModelManifest:
    """The manifest of all parts in a folder."""
    files = {name: entry for name, entry in checksums_of(root).items() if name != MANIFEST}
    return ModelManifest(files, step, autoencoder, _class_names(root))


def _class_names(root: Path) -> tuple[str, ...] | None:
    file = next((root / name for name in (CONDITIONING_FILE, CLASSIFIER_FILE) if (root / name).is_file()), None)
    return None if file is None else tuple(read_json(file)["class_names"])


def differences(root: Path, manifest: ModelManifest, parts: Sequence[str] = (), *, whole: bool = True) -> list[str]:
    """How the files of these parts differ from the manifest. Unless `whole`, only files that changed are read."""
    known, listed = KnownChecksums(root), manifest.of_parts(parts)
    problems = list(differing_files(root, listed, {} if whole else known.of(listed)))
    if not problems:
        known.add(listed)
    return problems


def check_manifest(
    root: Path,
    parts: Sequence[str] = (),
    *,
    autoencoder: str = "",
    class_names: Sequence[str] | None = None,
    ignore: bool = False,
) -> None:
    """`UserError` unless what was loaded from a model folder is what was published, if that is known.

    `parts` are those that were loaded, all by default; `autoencoder` and `class_names` are of what was loaded. With
    `ignore` the differences are logged.
    """
    try:
        manifest = read_manifest(root)
    except UserError as error:
        problems = [error.problem.removeprefix(f"{root}/")]
    else:
        if manifest is None:
            return
        problems = list(_problems(root, manifest, parts, autoencoder, class_names))
    if not problems:
        return
    more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    text = f"{root}: not as it was published: {'; '.join(problems[:_LISTED])}{more}"
    if not ignore:
        raise UserError(text, remedy="restore it; what you changed yourself is taken with `ignore_manifest`")
    logger.warning("%s; taken as it is (`ignore_manifest`)", text)


def _problems(
    root: Path, manifest: ModelManifest, parts: Sequence[str], autoencoder: str, class_names: Sequence[str] | None
) -> Iterator[str]:
    """What differs in meaning, then the files whose differences that does not tell."""
    covered: tuple[str, ...] = ()
    if autoencoder and manifest.autoencoder and autoencoder != manifest.autoencoder:
        yield "vae is another autoencoder than the one that the model was trained on"
        covered += ("vae/",)
    if class_names is not None and manifest.class_names and tuple(class_names) != manifest.class_names:
        yield _changed_classes(manifest.class_names, tuple(class_names))
        covered += (CONDITIONING_FILE, CLASSIFIER_FILE)
    for problem in differences(root, manifest, parts, whole=False):
        if not problem.startswith(covered or ("\0",)):
            yield problem


def _changed_classes(trained: tuple[str, ...], now: tuple[str, ...]) -> str:
    if len(trained) != len(now):
        return f"{len(now)} class names, the model was trained with {len(trained)}"
    if sorted(trained) == sorted(now):
        return f"its class names are in another order than in training ({_some(now)}; trained: {_some(trained)})"
    index = next(index for index, names in enumerate(zip(trained, now, strict=True)) if names[0] != names[1])
    return f"class {index} is named {printable(now[index], 60)}, in training {printable(trained[index], 60)}"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(printable(name, 40) for name in names[:4]) + (", ..." if len(names) > 4 else "")
