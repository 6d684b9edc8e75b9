"""Features of DINOv2 and CLIP through transformers, and how well images fit their captions by CLIP.

The preprocessing is that of the model's own `preprocessor_config.json`, done on the device. Weights are read from
safetensors only, of a local folder or of the hub's cache; nothing is downloaded without `download_extractor`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from autoencoders.weight_file import not_finite, refuse
from ldm.conditioning.text_encoder import printable_utf8, quietly
from ldm.evaluation.features.extractors import Extractor
from ldm.evaluation.features.train_network import safe_name
from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.files import check_regular_folder, fingerprint, read_json, sha256_of_file
from ldm.runtime.images import to_uint8
from ldm.runtime.text import printable

NAMES = {"dinov2": "facebook/dinov2-large", "clip": "openai/clip-vit-large-patch14"}
_HUB_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*")
_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "*.txt"]
_FILES += ["vocab.json", "special_tokens_map.json"]
_LARGEST = 1024  # pixels that an image is resized to
_MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True)
class Preprocessing:
    """The steps of a `preprocessor_config.json`: resize, crop, scale, normalise."""

    resize: tuple[int, int] | int | None  # (height, width), or the shorter side
    mode: str
    crop: tuple[int, int] | None
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> Preprocessing:
        """`UserError` for a file with any other step."""
        content = read_json(path)
        try:
            side, crop = content.get("size", 224), content.get("crop_size", 224)
            resize = _side(side) if content.get("do_resize", True) else None
            cropped = _pair(_side(crop)) if content.get("do_center_crop", "crop_size" in content) else None
            sides = [side for size in (resize, cropped) if size is not None for side in _pair(size)]
            mode = _MODES[int(content.get("resample", 3))]
            factor = float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 1.0
            normal = content.get("do_normalize", True)
            mean = tuple(map(float, content["image_mean"])) if normal else (0.0,) * 3
            std = tuple(map(float, content["image_std"])) if normal else (1.0,) * 3
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or not all(1 <= side <= _LARGEST for side in sides):
                raise ValueError("sizes, mean or std out of range")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}: a preprocessing that is not known here ({reason})") from None
        return cls(resize, mode, cropped, factor, mean, std)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to what the model takes; 8 bits after resizing, as image files have."""
        x = to_uint8(images)
        if self.resize is not None:
            target, mode = self._target(x.shape[-2], x.shape[-1]), InterpolationMode(self.mode)
            x = resize(x, list(target), mode, antialias=True)
        x = x.float()
        if self.crop is not None:
            x = _centre(x, *self.crop)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return (x * self.factor - mean) / std

    def __str__(self) -> str:
        steps = ["8 bits"]
        if self.resize is not None:
            to = f"shorter side to {self.resize}" if isinstance(self.resize, int) else "to {} x {}".format(*self.resize)
            steps.append(f"{self.mode} antialiased resize, {to}")
        if self.crop is not None:
            steps.append("centre {} x {}".format(*self.crop))
        return ", ".join(steps)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        assert self.resize is not None
        short, long = min(height, width), max(height, width)
        other = int(self.resize * long / short)
        return (self.resize, other) if height <= width else (other, self.resize)


class PretrainedExtractor(Extractor):
    """DINOv2's class token after its last norm, or CLIP's projected embedding of the image: (B, dim) float32."""

    def __init__(self, folder: Path, title: str, device: torch.device | str = "auto") -> None:
        """`folder` is local; `title` goes into the name, with the fingerprint of the weights."""
        self.device, self.folder = resolve_device(device), folder
        self.kind = str(read_json(folder / "config.json").get("model_type"))
        if self.kind not in NAMES:
            problem = f"expected a model of type dinov2 or clip, found {printable(self.kind)!r}"
            raise UserError(f"{printable(folder)}: {problem}")
        self.prepare = Preprocessing.read(folder / "preprocessor_config.json")
        self.network: Any = _load(folder, self.kind).to(self.device).eval().requires_grad_(False)
        of_folder: Any = self.network.config
        self.dim = int(of_folder.hidden_size if self.kind == "dinov2" else of_folder.projection_dim)
        weights = {path.name: sha256_of_file(path) for path in sorted(folder.glob("*.safetensors"))}
        self.name = f"{self.kind}:{safe_name(title)}:{fingerprint(weights)[:8]}"
        self.preprocessing = str(self.prepare)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        x = self.prepare(images.to(self.device))
        if self.kind == "dinov2":
            return self.network(pixel_values=x).pooler_output.float()
        return self.network.visual_projection(self.network.vision_model(pixel_values=x).pooler_output).float()


class ClipScorer:
    """How well images fit their captions: 100 max(cos, 0) of CLIP's two embeddings.

    CLIPScore (Hessel et al. 2021, arXiv:2104.08718, eq. 1) is 2.5 max(cos, 0), a 40th of it.
    """

    FORM = "100 max(cos, 0) of the embeddings of caption and picture; CLIPScore's 2.5 max(cos, 0) is a 40th of it"

    def __init__(self, extractor: PretrainedExtractor) -> None:
        if extractor.kind != "clip":
            raise UserError(f"expected a CLIP, got {extractor.name}", setting="clip_model")
        self.extractor, self.name = extractor, extractor.name

    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """One number an image (B,), for images (B, 3, H, W) in [-1, 1] and a caption each; a long one is cut."""
        return self.of_features(self.extractor(images), captions)

    def of_features(self, features: Tensor, captions: Sequence[str]) -> Tensor:
        """As `__call__`, from the extractor's features (B, dim) of the images."""
        if len(features) != len(captions):
            raise ValueError(f"expected one caption an image, got {len(captions)} for {len(features)}")
        texts = torch.cat([self._texts(captions[start : start + 256]) for start in range(0, len(captions), 256)])
        return 100 * F.cosine_similarity(features.to(texts.device), texts).clamp(min=0)

    @torch.no_grad()
    def _texts(self, captions: Sequence[str]) -> Tensor:
        network, plain = self.extractor.network, [printable_utf8(text) for text in captions]
        length = min(self._tokenizer.model_max_length, network.config.text_config.max_position_embeddings)
        tokens = self._tokenizer(plain, padding=True, truncation=True, max_length=length, return_tensors="pt")
        tokens = {name: tokens[name].to(self.extractor.device) for name in ("input_ids", "attention_mask")}
        return network.text_projection(network.text_model(**tokens).pooler_output).float()

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        folder = self.extractor.folder
        try:
            with quietly():
                return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the many errors of a missing or broken file
            raise UserError(f"{printable(folder)}: cannot read its tokenizer: {_first_line(error)}") from None


def pretrained_extractor(
    name: str, setting: str, *, device: torch.device | str = "auto", download: bool = False
) -> PretrainedExtractor:
    """From a local folder, or by a name of the hub: dinov2, clip, or ORG/NAME; from its cache unless `download`.

    `UserError` where there is none, where its weights are not safetensors or not all there, and for another model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return PretrainedExtractor(folder, folder.resolve().name, device)
    hub = NAMES.get(name, name)
    if not _HUB_NAME.fullmatch(hub):
        raise UserError(f"{setting} {printable(hub)}: neither a folder nor ORG/NAME of the hub")
    from huggingface_hub import snapshot_download

    try:
        with quietly():
            folder = Path(snapshot_download(hub, local_files_only=not download, allow_patterns=_FILES))
    except Exception as error:  # of the network, the cache, or the hub
        remedy = "" if download else "; give a local folder, or `download_extractor`"
        what = f"{hub} cannot be downloaded ({_first_line(error)})" if download else f"{hub} is not in the hub's cache"
        raise UserError(f"{setting} {printable(name)}: {what}{remedy}") from None
    return PretrainedExtractor(folder, hub, device)


def _load(folder: Path, kind: str) -> nn.Module:
    from transformers import CLIPModel, Dinov2Model

    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{printable(folder)}: holds no weights (read from safetensors only)")
    check_regular_folder(folder)
    loader: Any = CLIPModel if kind == "clip" else Dinov2Model
    try:
        with quietly(), torch.random.fork_rng(devices=[]):
            network, report = loader.from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # the many errors of a missing, broken or refused file
        raise UserError(f"{printable(folder)}: cannot read its weights: {_first_line(error)}") from None
    missing = sorted(report["missing_keys"])
    if missing or report["mismatched_keys"]:
        raise UserError(f"{printable(folder)}: weights are missing or of another shape, such as {[*missing, '?'][0]}")
    with user_errors():
        refuse(printable(folder), not_finite(network.state_dict()))
    return network


def _side(value: Any) -> tuple[int, int] | int:
    if isinstance(value, dict) and "shortest_edge" not in value:
        return int(value["height"]), int(value["width"])
    return int(value["shortest_edge"] if isinstance(value, dict) else value)


def _pair(value: tuple[int, int] | int) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _centre(x: Tensor, height: int, width: int) -> Tensor:
    """The middle (B, 3, height, width), black around it where x is smaller."""
    down, right = max(0, height - x.shape[-2]), max(0, width - x.shape[-1])
    if down or right:
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    top, left = round((x.shape[-2] - height) / 2), round((x.shape[-1] - width) / 2)
    return x[..., top : top + height, left : left + width]


def _first_line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])
