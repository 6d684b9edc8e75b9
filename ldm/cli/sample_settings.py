"""The settings of `ldm sample`, and the conditions of its images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from autoencoders import Tiling
from ldm.cli.editing import EditFlags
from ldm.cli.parsing import Repeated
from ldm.sampling.config import Request, SamplingConfig


@dataclass(frozen=True)
class SampleRun:
    """Draw pictures from a model folder or a run folder of `ldm train diffusion` or `ldm train prior`, or of a VAE from
    its own prior."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = ""
    """Model folder."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompt: Repeated = ()
    """What to draw; repeat the flag for several, which then take turns."""
    negative_prompt: str | None = None
    """What not to draw: takes the place of the null condition in classifier-free guidance."""
    class_label: Repeated = ()
    """Class name or number; repeat the flag for several. Default of a class-conditional model: all classes in turn."""
    negative_class: str | None = None
    """Class to stay away from: takes the place of the null class in classifier-free guidance."""
    classifier: Repeated = ()
    """Output folder of `ldm train classifier`, where the model folder holds none; repeat the flag for several, which
    are the branches classifier, classifier2, ..., or name them: NAME=FOLDER."""
    weak: str = ""
    """The weak network of autoguidance: another model or run folder, or RUN/checkpoint-STEP."""
    num_images: int = 16
    seed: int = 0
    """Picture i depends on the seed and i alone."""
    first_index: int = 0
    """Number of the first picture: `--first-index 7 --num-images 1` makes number 7 alone."""
    batch_size: int = 16
    """Pictures drawn at once; does not change them."""
    tiling: Tiling = field(default_factory=Tiling)
    editing: EditFlags = field(default_factory=EditFlags)
    recreate: str = ""
    """A PNG made by this command: make it again (its own settings are taken from it; of the pictures that it was made
    from, only what they must be)."""
    output_dir: str = ""
    """New or empty folder for the pictures."""
    overwrite: bool = False
    """Replace earlier samples in the output folder."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


def in_turn(
    settings: SampleRun, labels: Sequence[int | None], negative: int | None, numbers: Iterable[int]
) -> list[Request]:
    """The conditions of the pictures of these numbers: the prompts of the settings and the labels take turns."""
    prompts, labels = settings.prompt or ("",), labels or [None]
    return [
        Request(
            prompt=prompts[number % len(prompts)],
            negative_prompt=settings.negative_prompt,
            class_label=labels[number % len(labels)],
            negative_class=negative,
        )
        for number in numbers
    ]
