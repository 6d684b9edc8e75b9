"""What a cache of latents or codes is of, and the folder that holds nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.data.latent_layout import is_ours
from ldm.runtime.errors import UserError
from ldm.runtime.files import fingerprint

if TYPE_CHECKING:
    from autoencoders import Autoencoder
    from ldm.data.dataset import ImageData

ENCODE_AGAIN = "remove the folder and encode again"  # the remedy for a damaged cache


@dataclass(frozen=True)
class CacheKey:
    """Everything that the latents depend on."""

    images: str  # fingerprint of the images and their order
    autoencoder: str
    image_size: int
    crop: str
    flip: bool

    @classmethod
    def of(cls, autoencoder: Autoencoder, data: ImageData) -> CacheKey:
        """Images are encoded without augmentation, so the crop is always the centre."""
        return cls(data.image_fingerprint, autoencoder.fingerprint(), data.image_size, "center", data.flip)

    def digest(self) -> str:
        return fingerprint(asdict(self))

    def check(self, cached: dict[str, Any], what: str) -> None:
        """`UserError` that names how the key of a cache, `what`, differs from this one."""
        changed = {name: now for name, now in asdict(self).items() if cached.get(name) != now}
        if changed:
            texts = [
                f"{name} (cached {str(cached.get(name))[:12]}, now {str(now)[:12]})" for name, now in changed.items()
            ]
            remedy = "remove the folder or name another one, and encode again"
            if "images" in changed:
                remedy += ", or give the `layout_version` that the images were read by"
            raise UserError(f"{what} is stale: {', '.join(texts)} differ", remedy=remedy)


def check_cache_folder(folder: Path, what: str = "latents", is_ours: Callable[[str], bool] = is_ours) -> None:
    """`UserError` unless the folder is absent or holds nothing but a cache: files whose names `is_ours` knows."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file", remedy=f"expected a folder for {what}")
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    foreign = [path.name for path in entries if path.is_dir() or not is_ours(path.name)]
    if foreign:
        raise UserError(f"{folder}: holds something else ({foreign[0]})", remedy=f"name a folder for the {what} alone")
