"""What samples are compared with: features of real images, computed now or read from a portable file (.npz).

Such a file holds `features` (N, D) and what they are of and by; `mu` and `sigma`, their mean and covariance under the
names that other tools read; `others` (M, D), features of images of the other split, from which follows what the
distances are for real images; and the small network, where that made them. A file with `mu` and `sigma` alone, as other
tools write, is taken as moments of Inception features: good for fid.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.dataset import ImageData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.features.archive import Archive, save_archive
from ldm.evaluation.features.extractors import Extractor, InceptionExtractor, TrainedExtractor
from ldm.evaluation.features.feature_cache import chosen_indices, features_of
from ldm.evaluation.features.gaussian import Gaussian
from ldm.evaluation.features.small_network import NetworkMetadata, SmallNetwork, working_size
from ldm.evaluation.registry import metrics as registry
from ldm.runtime.errors import UserError
from ldm.runtime.schema import convert, parse_json
from ldm.runtime.settings import from_mapping
from ldm.runtime.text import one_line, printable

_NETWORK = "network."
_MOST_CLASSES = 100_000
_MOST_OTHERS = 10_000  # images of the other split


@dataclass(frozen=True)
class ReferenceMetadata:
    """What the features of a reference file are of, and by."""

    extractor: str
    preprocessing: str
    data: str = ""
    split: str = ""
    data_fingerprint: str = ""
    image_size: int = 0
    others_split: str = ""
    others_fingerprint: str = ""
    version: int = 1
    network: str = ""  # facts of the small network as JSON; "": another made them


class ReferenceFile:
    """A reference file, opened and checked; its arrays are read at their first use."""

    def __init__(self, path: str | Path) -> None:
        self.archive = Archive(path)
        self.name = Path(path).name
        shapes = self.archive.shapes
        if self.foreign:
            dim = shapes.get("mu", (0,))[0] if len(shapes.get("mu", ())) == 1 else 0
            if not dim or shapes.get("sigma") != (dim, dim):
                problem = "holds neither features nor the moments mu (D,) and sigma (D, D)"
                raise self._refusal(problem, "make one with `ldm evaluate reference DATA --output FILE.npz`")
            self.metadata = ReferenceMetadata("inception", InceptionExtractor.preprocessing)
            self.dim, self.count = dim, 0
            return
        of, others = shapes["features"], shapes.get("others", ())
        if len(of) != 2 or len(others) != 2 or others[1] != of[1] or of[0] < 2 or len(shapes["facts"]) != 1:
            raise self._refusal(f"features of shape {of} and others of {others} are no reference")
        self.count, self.dim = of
        try:
            self.metadata = from_mapping(ReferenceMetadata, parse_json(self.archive.read("facts").tobytes()))
        except ValueError as error:
            raise self._refusal(f"its facts cannot be read ({error})") from None

    @property
    def foreign(self) -> bool:
        """Whether it is another tool's, with moments alone."""
        return "features" not in self.archive or "facts" not in self.archive

    @cached_property
    def real(self) -> Tensor | Gaussian:
        """The features (N, D) float32, or the Gaussian of a file with moments alone."""
        if not self.foreign:
            return self._tensor("features").float()
        return Gaussian.from_moments(self._tensor("mu"), self._tensor("sigma"), self.count)

    @cached_property
    def others(self) -> Tensor:
        """Features (M, D) of real images of the other split; none of a foreign file."""
        return torch.empty(0, self.dim) if self.foreign else self._tensor("others").float()

    def extractor(self, device: torch.device | str = "auto") -> TrainedExtractor | None:
        """The small network that is in the file, where it made the features."""
        if not self.metadata.network:
            return None
        try:
            metadata = convert(parse_json(self.metadata.network), NetworkMetadata)
            heads = metadata.heads
            size, classes = metadata.image_size, sum(map(len, heads.values()))
            if working_size(size) != size or classes > _MOST_CLASSES:
                raise ValueError("sizes out of range")
            with torch.random.fork_rng(devices=[]):
                network = SmallNetwork(metadata.image_size, heads)
            state = {name: self._tensor(_NETWORK + name) for name in network.state_dict()}
            network.load_state_dict(state)
        except UserError:
            raise
        except (ValueError, KeyError, RuntimeError) as error:
            raise self._refusal(f"the network in it cannot be used ({one_line(error)})") from None
        extractor = TrainedExtractor(network.requires_grad_(False), replace(metadata, heads=heads), device)
        if extractor.name != self.metadata.extractor:
            raise self._refusal(f"the network in it is {extractor.name}, not {self.metadata.extractor}")
        return extractor

    def check_extractor(self, extractor: Extractor) -> None:
        """`UserError` for features of another extractor: their distances mean nothing."""
        mine = f"{self.metadata.extractor} ({self.metadata.preprocessing}; {self.dim} dimensions)"
        theirs = f"{extractor.name} ({extractor.preprocessing}; {extractor.dim} dimensions)"
        if mine != theirs:
            problem = f"its features are of {mine}, those of the settings of {theirs}"
            raise self._refusal(problem, "make one with the same `extractor`")

    def real_for(self, extractor: Extractor) -> Tensor | Gaussian:
        """`real` on the extractor's device; `UserError` for features of another one."""
        self.check_extractor(extractor)
        return self.real.to(extractor.device)

    def check_metrics(self, config: EvaluationConfig) -> None:
        """`UserError` for a metric that moments do not suffice for."""
        wrong = [name for name in config.sample_metrics if "real_features" in registry.info(name).needs]
        if self.foreign and wrong:
            problem = f"needs features, and {self.archive.path} holds moments alone, good for fid"
            raise UserError(problem, setting="metrics", value=wrong[0])

    def check_data(self, data: ImageData, config: EvaluationConfig) -> None:
        """`UserError` for a reference of other images, unless that was allowed."""
        metadata = self.metadata
        ours, mine = (data.fingerprint, data.image_size), (metadata.data_fingerprint, metadata.image_size)
        if self.foreign or config.allow_other_reference or ours == mine:
            return
        made_of = f"{metadata.data} ({metadata.split}, {metadata.image_size} pixels, {metadata.data_fingerprint[:8]})"
        given = f"{data.name} ({data.split}, {data.image_size} pixels, {data.fingerprint[:8]})"
        remedy = "give that data and `split`, or `allow_other_reference`"
        raise self._refusal(f"made of {made_of}, not of {given}", remedy)

    def manifest(self) -> dict[str, Any]:
        """For the manifest of the figures: what the reference is."""
        public = {name: value for name, value in asdict(self.metadata).items() if name not in ("network", "version")}
        safe = {name: printable(value) if isinstance(value, str) else value for name, value in public.items()}
        return {"file": printable(self.name), "count": self.count or "not known", **safe}

    def _tensor(self, name: str) -> Tensor:
        tensor = torch.from_numpy(self.archive.read(name))
        if not tensor.isfinite().all():
            raise self._refusal(f"its array {name} holds values that are not finite")
        return tensor

    def _refusal(self, problem: str, remedy: str = "") -> UserError:
        return UserError(problem, setting="reference", value=self.archive.path, remedy=remedy)


def opened_reference(config: EvaluationConfig, data: ImageData | None = None) -> ReferenceFile | None:
    """The file that the settings name, checked against the metrics and the data; None where they name none."""
    if not config.reference:
        return None
    file = ReferenceFile(config.reference)
    file.check_metrics(config)
    if data is not None:
        file.check_data(data, config)
    return file


def save_reference(
    path: str | Path, extractor: Extractor, data: ImageData, others: ImageData | None, config: EvaluationConfig
) -> ReferenceMetadata:
    """Make the reference file of `data` by this extractor, and of `others`, the other split, up to 10000 images."""
    indices = chosen_indices(len(data), config.num_reference, config.seed)
    features = features_of(extractor, data, indices, batch_size=config.batch_size, label="features of the data")
    held = torch.empty(0, extractor.dim)
    if others is not None:
        indices = chosen_indices(len(others), _MOST_OTHERS, config.seed)
        held = features_of(extractor, others, indices, batch_size=config.batch_size, label="features of other images")
    network = ""
    arrays: dict[str, np.ndarray] = {}
    if isinstance(extractor, TrainedExtractor):
        network = json.dumps(asdict(extractor.metadata))
        arrays = {_NETWORK + name: value.cpu().numpy() for name, value in extractor.network.state_dict().items()}
    of_data = (data.name, data.split, data.fingerprint, data.image_size)
    of_others = ("", "") if others is None else (others.split, others.fingerprint)
    metadata = ReferenceMetadata(extractor.name, extractor.preprocessing, *of_data, *of_others, network=network)
    fitted = Gaussian.fit(features)
    arrays |= {
        "mu": fitted.mean.cpu().numpy(),
        "sigma": (fitted.factor.T @ fitted.factor).cpu().numpy(),  # the unbiased covariance
        "facts": np.frombuffer(json.dumps(asdict(metadata)).encode(), dtype=np.uint8),
        "features": features.float().cpu().numpy(),
        "others": held.float().cpu().numpy(),
    }
    save_archive(path, arrays)
    return metadata
