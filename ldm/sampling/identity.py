"""A name for the content of a model: what samples, evaluations and comparisons are continued by."""

from __future__ import annotations

from pathlib import Path

from ldm.runtime.files import fingerprint, sha256_of_file
from ldm.sampling.image_model import ImageModel
from ldm.sampling.pipeline import Pipeline

_PARTS = (
    "vae", "unet", "scheduler", "text_encoder", "tokenizer", "classifier", "classifiers/*", "weak_unet",
    "weak_conditioning", "prior", "generator",
)  # fmt: skip


def identity_of(model: ImageModel, folder: str | Path, weak: str | Path | None) -> str:
    """`model_identity` of a loaded model: of its folder, its separate classifiers and its weak network."""
    separate: list[str | Path] = []
    if isinstance(model, Pipeline):
        separate = [guide.folder.parent for guide in model.networks.classifiers.values()]
    return model_identity(folder, *separate, *([weak] if weak else []))


def model_identity(*folders: str | Path) -> str:
    """A name for the content of a model folder (and of separate classifiers and a weak network): SHA-256 over their
    parts.

    Of a training checkpoint only its manifest counts, which holds the checksums of the rest.
    """
    digests: dict[str, str] = {}
    for number, folder in enumerate(folders):
        root = Path(folder)
        parts = [path for part in _PARTS for path in sorted(root.glob(f"{part}/*")) if path.is_file()]
        if (root / "manifest.json").is_file():
            parts.append(root / "manifest.json")
        elif not parts:  # the folder of one part
            parts = sorted([*root.glob("config.json"), *root.glob("*.safetensors")])
        digests |= {f"{number}/{path.relative_to(root)}": sha256_of_file(path) for path in parts}
    return fingerprint(digests)
