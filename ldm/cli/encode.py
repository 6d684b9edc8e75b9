"""`ldm encode`: encode a data set into a latent cache."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoencoders import Tiling
from ldm.cli.data_report import show_data
from ldm.cli.default_folder import default_folder, name_of
from ldm.cli.outputs import check_tiling
from ldm.cli.parsing import parse, require
from ldm.data.config import DataConfig
from ldm.runtime.device import check_device, resolve_device
from ldm.runtime.distributed import torchrun_processes
from ldm.runtime.errors import LARGEST_BATCH, MOST_WORKERS, UserError, in_range
from ldm.runtime.text import counted

if TYPE_CHECKING:  # wrong flags are refused before torch is imported
    import torch

    from autoencoders import Autoencoder
    from ldm.data.dataset import ImageData


@dataclass(frozen=True)
class EncodeRun:
    """Encode the training images of a data set once, for `ldm train diffusion|classifier --latents`."""

    dataset: DataConfig = field(default_factory=DataConfig)
    autoencoder: str = ""
    """Output folder of `ldm train autoencoder` (or any folder with a `vae`)."""
    output_dir: str = ""
    """Folder of the cache; an interrupted one of the same data and autoencoder is continued. Unset:
    latents/AUTOENCODER-1, or the next number that is free or was stopped."""
    batch_size: int = 64
    dataloader_num_workers: int = 0
    """Processes that load images; the latents do not depend on their number."""
    tiling: Tiling = field(default_factory=Tiling)
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    ignore_manifest: bool = False
    """Take an autoencoder that is not as it was published, for those who edit models."""


def run(arguments: list[str]) -> None:
    """Write the cache and print its path; under torchrun the processes divide the work."""
    with torchrun_processes() as processes:
        settings = processes.run_on_all(lambda: _settings(arguments))
        from ldm.data.latent_cache import encode_latents

        device = processes.device(resolve_device(settings.device))
        autoencoder, data = processes.run_on_all(lambda: _prepare(settings, device))
        show_data(data.report)
        folder = Path(settings.output_dir)
        cache = encode_latents(
            autoencoder,
            data,
            folder,
            batch_size=settings.batch_size,
            device=device,
            num_workers=settings.dataloader_num_workers,
            cache_device="disk",
            tiling=settings.tiling,
            processes=processes,
        )
        if processes.is_main:
            print(f"wrote {folder}: latents {'x'.join(map(str, cache.shape))} of {counted(len(data), 'image')}")


def _settings(arguments: list[str]) -> EncodeRun:
    settings = parse(EncodeRun, arguments, "encode")
    require(settings.autoencoder, "--autoencoder", "the output folder of `ldm train autoencoder`")
    if not settings.output_dir:
        name = name_of(settings.autoencoder)
        folder = default_folder("latents", name, lambda path: not (path / "manifest.json").is_file())
        settings = replace(settings, output_dir=folder)
    in_range(settings, dataloader_num_workers=(0, MOST_WORKERS), batch_size=(1, LARGEST_BATCH))
    check_device(settings.device)
    return settings


def _prepare(settings: EncodeRun, device: torch.device) -> tuple[Autoencoder, ImageData]:
    from ldm.data.cache_key import check_cache_folder
    from ldm.data.open import open_data
    from ldm.training.tasks.latents import load_autoencoder

    autoencoder, _ = load_autoencoder(settings.autoencoder, device, settings.ignore_manifest)
    if autoencoder.is_identity:
        raise UserError(f"--autoencoder {settings.autoencoder}: pixels need no cache; train without `ldm encode`")
    check_tiling(settings.tiling, autoencoder)
    check_cache_folder(Path(settings.output_dir))
    return autoencoder, open_data(settings.dataset, "train")
