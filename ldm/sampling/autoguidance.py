"""The guiding model of autoguidance: a smaller model of the same latents, or an earlier snapshot of a training."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoencoders import Autoencoder
from ldm.conditioning.condition import Condition
from ldm.conditioning.conditioner import Conditioner
from ldm.models.backbone import Backbone, load_backbone
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.files import atomic_folder, atomic_write_json, read_json, sha256_of_file
from ldm.runtime.tensors import load_expected
from ldm.sampling.config import Request
from ldm.sampling.forward_process import Process
from ldm.sampling.model_folder import check_parts, read_scheduler
from ldm.sampling.model_manifest import check_manifest
from ldm.sampling.publication import reading
from samplers.level import short_repr

UNET, CONDITIONING = "weak_unet", "weak_conditioning"
_SNAPSHOT = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True)
class GuidingModel:
    """A denoising network with its own conditioner, schedule and target, on the latents of the guided model."""

    unet: Backbone
    conditioner: Conditioner
    process: Process

    __repr__ = short_repr

    def check(self, labels: Iterable[int | None], class_names: Sequence[str]) -> None:
        """`UserError` for a class, given by its index in `class_names`, that this network should know and does not."""
        for label in labels if self.conditioner.num_classes else ():
            self._label(label, class_names)

    def condition(self, requests: Sequence[Request], class_names: Sequence[str], *, null: bool) -> Condition:
        """The same requests in this network's own terms: classes by name, texts where it knows text.

        `class_names` are the names of the requests' numbers. `UserError` as `check`.
        """
        if null:
            return self.conditioner.null(len(requests), self.conditioner.device)
        labels: list[int | str | None] | None = None
        if self.conditioner.num_classes:
            labels = [self._label(request.class_label, class_names) for request in requests]
        texts = [request.prompt for request in requests] if self.conditioner.has_text else None
        if labels is None and texts is None:
            return Condition(None, None)
        return self.conditioner.encode(labels, texts)

    def _label(self, label: int | None, class_names: Sequence[str]) -> int | None:
        if label is None:
            return None
        known = self.conditioner.class_names
        name = class_names[label] if label < len(class_names) else str(label)
        if name not in known:
            problem = f"the guiding model does not know the class {name!r}, only {', '.join(known[:8])}"
            raise UserError(problem, setting="weak")
        return known.index(name)

    def save(self, folder: Path) -> None:
        """Write weak_unet/ and weak_conditioning/ (its conditions and its schedule) into a model folder."""
        with atomic_folder(folder / UNET) as target:
            self.unet.save_pretrained(target)
        with atomic_folder(folder / CONDITIONING) as target:
            self.conditioner.save_pretrained(target)
            atomic_write_json(target / "scheduler" / "scheduler_config.json", self.process.config())


def load_guiding_model(
    folder: str | Path, autoencoder: Autoencoder, unet: Backbone, *, ignore_manifest: bool = False
) -> GuidingModel:
    """A model or run folder, or RUN/checkpoint-STEP, whose averaged (EMA) weights are then taken.

    `UserError` unless it is for the latents of `autoencoder` and of the size of `unet`'s.
    """
    path = Path(folder)
    snapshot = bool(_SNAPSHOT.fullmatch(path.name)) and not (path / "model_index.json").is_file()
    if snapshot and not path.is_dir():
        names = ", ".join(sorted(other.name for other in path.parent.glob("checkpoint-*") if other.is_dir())) or "none"
        remedy = f"there is {names} (a training keeps `checkpoints_total_limit` of them)"
        raise UserError("no such checkpoint", remedy=remedy, setting="weak", value=folder)
    with user_errors(setting="weak", value=folder), reading(path.parent if snapshot else path):
        root = check_parts(path.parent if snapshot else path)
        fingerprint = Autoencoder.from_pretrained(root / "vae").fingerprint()
        if fingerprint != autoencoder.fingerprint():
            raise UserError("it is of the latents of another autoencoder than this model's")
        weak = GuidingModel(load_backbone(root / "unet"), Conditioner.from_pretrained(root), read_scheduler(root))
        classes = weak.conditioner.class_names
        check_manifest(root, autoencoder=fingerprint, class_names=classes, ignore=ignore_manifest)
        if snapshot:
            _fill(weak, path)
    _check_latents(weak.unet, unet, f"`weak` {folder}")
    return weak


def read_guiding_model(root: Path, unet: Backbone) -> GuidingModel | None:
    """The guiding model that a model folder holds, if any."""
    if not (root / UNET).is_dir():
        return None
    conditioning = root / CONDITIONING
    if not (conditioning / "conditioning.json").is_file():
        raise UserError(f"{root}: the model has {UNET} but lacks {CONDITIONING}/conditioning.json")
    with user_errors(root / UNET):
        process = read_scheduler(conditioning)
        weak = GuidingModel(load_backbone(root / UNET), Conditioner.from_pretrained(conditioning), process)
    _check_latents(weak.unet, unet, f"{root / UNET}")
    return weak


def _check_latents(weak: Backbone, unet: Backbone, what: str) -> None:
    for name in ("in_channels", "out_channels", "sample_size"):
        theirs, ours = getattr(weak.config, name), getattr(unet.config, name)
        channels = unet.config.in_channels
        if name == "out_channels" and {theirs, ours} <= {channels, 2 * channels}:
            continue  # one of them has a learned variance, which guides nothing
        if theirs != ours and None not in (theirs, ours):
            raise UserError(f"{what}: its U-Net has {name} {theirs}, this model's has {ours}")


def _fill(weak: GuidingModel, checkpoint: Path) -> None:
    """The weights of a training checkpoint: the averaged ones, or where the run averages nothing the plain ones."""
    path = checkpoint / "ema.safetensors"
    path = path if path.is_file() else checkpoint / "model.safetensors"
    entry = read_json(checkpoint / "manifest.json").get(path.name)
    if not isinstance(entry, dict) or not path.is_file() or entry.get("sha256") != sha256_of_file(path):
        raise UserError(f"damaged: {path.name} is missing or differs from its manifest.json")
    both = torch.nn.ModuleDict({"unet": weak.unet, "conditioner": weak.conditioner})
    both.load_state_dict(load_expected(path, both.state_dict(), described_by="the model of its run folder"))
