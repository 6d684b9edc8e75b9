"""The options of every command that takes a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ldm.cli.parsing import Repeated

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelOptions:
    """A model folder, and what is loaded with it."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = ""
    """Model folder."""
    classifier: Repeated = ()
    """Output folder of `ldm train classifier`, where the model folder holds none; repeat the flag for several, which
    are the branches classifier, classifier2, ..., or name them: NAME=FOLDER."""
    weak: str = ""
    """The guiding model of autoguidance: another model or run folder, or RUN/checkpoint-STEP."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    ignore_manifest: bool = False
    """Take model folders as they are where they are not as they were published (model_manifest.json), for those who
    edit them."""

    def loading(self, device: torch.device) -> dict[str, Any]:
        """The arguments of `Pipeline.load` and `load_model` besides the folder."""
        given = {"classifier": self.classifier or None, "weak": self.weak or None}
        return {"device": device, **given, "ignore_manifest": self.ignore_manifest}
