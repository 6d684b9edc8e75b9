"""What the system needs of a denoising network, and which class reads its folder.

Another installed package adds a class by entry point, in the group "ldm.networks", under the `_class_name` of its
config.json.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ldm.models.perturbation import Kind
from ldm.models.weights import CONFIG_NAME, load_weights, read_config, save_network
from ldm.runtime.errors import UserError
from ldm.runtime.files import read_json
from ldm.runtime.text import printable, suggest

_BackboneT = TypeVar("_BackboneT", bound="Backbone")
_backbones: dict[str, type[Backbone]] = {}


class Backbone(nn.Module):
    """forward(x, t, *, class_labels=None, context=None): x (B, C, H, W), t in [0, T-1] (B,) or () -> (B, C_out, H, W).

    `config` has in_channels, out_channels and sample_size. The defaults are those of a network without layers to
    perturb, whose conditions are embedded anew at every step. A network with such layers takes `perturbations` as well.
    """

    class_name: ClassVar[str]  # in config.json
    config: Any
    gradient_checkpointing: bool = False  # a network that supports it recomputes activations in the backward pass

    def fixed_inputs(self, class_labels: Tensor | None, context: Tensor | None) -> dict[str, Any]:
        """Arguments of `forward` for labels (B,) and context (B, L, D), the same at every step of a sampling run."""
        return self.plain_inputs(class_labels, context)

    @staticmethod
    def plain_inputs(class_labels: Tensor | None, context: Tensor | None) -> dict[str, Any]:
        """The conditions themselves, embedded at every step."""
        return {"class_labels": class_labels, "context": context}

    def perturbable_layers(self, kind: Kind, names: Sequence[str] = ()) -> tuple[str, ...]:
        """The modules that a perturbation of this kind changes, by default or by `names`; `UserError` without any."""
        raise UserError(f"a {self.class_name} has no layers to perturb", setting="guidance")

    def config_entries(self) -> dict[str, Any]:
        """The keys of config.json."""
        raise NotImplementedError

    @classmethod
    def from_entries(cls: type[_BackboneT], entries: dict[str, Any]) -> _BackboneT:
        """A network with the configuration of config.json; `ValueError` for what it does not take."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and the weights."""
        save_network(folder, self.class_name, self.config_entries(), self)

    @classmethod
    def from_pretrained(cls: type[_BackboneT], folder: str | Path, *, dtype: torch.dtype = torch.float32) -> _BackboneT:
        """Read a folder that `save_pretrained` wrote, or diffusers for the same class."""
        with torch.device("meta"):
            try:
                network = cls.from_entries(read_config(folder, cls.class_name))
            except (TypeError, ValueError) as error:
                raise UserError(f"{Path(folder) / CONFIG_NAME}: {error}") from None
        load_weights(folder, network, dtype)
        return network.eval()


def backbone(class_name: str) -> Callable[[type[_BackboneT]], type[_BackboneT]]:
    """Registers a subclass of `Backbone` under the `_class_name` of its config.json."""

    def register(network: type[_BackboneT]) -> type[_BackboneT]:
        known = _backbones.get(class_name)
        if known is not None and (known.__module__, known.__qualname__) != (network.__module__, network.__qualname__):
            raise ValueError(
                f"the network {class_name!r} is registered twice, by {known.__module__} and {network.__module__}"
            )
        if known is not None:  # a cell of a notebook that runs again
            warnings.warn(f"the network {class_name!r} is registered anew and replaces the one before", stacklevel=2)
        network.class_name = class_name
        _backbones[class_name] = network
        return network

    return register


def load_backbone(folder: str | Path) -> Backbone:
    """The network of a folder, of the class that its config.json names; `UserError` for an unknown class."""
    path = Path(folder) / CONFIG_NAME
    name = str(read_json(path).get("_class_name"))
    for point in entry_points(group="ldm.networks", name=name) if name not in _backbones else ():
        point.load()
    if name not in _backbones:
        raise UserError(f"{path}: no network of the class {printable(name)!r}", remedy=suggest(name, _backbones))
    return _backbones[name].from_pretrained(folder)
