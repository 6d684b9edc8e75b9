"""The settings of `ldm sample`, and the conditions of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from autoencoders import Tiling
from ldm.cli.editing import EditFlags, path_of
from ldm.cli.model_options import ModelOptions
from ldm.cli.parsing import Repeated
from ldm.runtime.errors import UserError
from ldm.sampling.config import INSTEAD, WITHOUT_DIFFUSION, Request, SamplingConfig

if TYPE_CHECKING:
    from ldm.sampling.image_model import ImageModel


@dataclass(frozen=True)
class SampleRun(ModelOptions):
    """Draw images from a model folder or a run folder of `ldm train diffusion`, `ldm train prior` or `ldm train gan`,
    or from a VAE's own prior."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompt: Repeated = ()
    """What to draw; repeat the flag for several, which then take turns."""
    negative_prompt: str | None = None
    """What not to draw: takes the place of the null condition in classifier-free guidance."""
    class_label: Repeated = ()
    """Class name or number; repeat the flag for several. Default of a class-conditional model: all classes in turn."""
    negative_class: str | None = None
    """Class to stay away from: takes the place of the null class in classifier-free guidance."""
    num_images: int = 16
    seed: int = 0
    """Image i depends on the seed and i alone."""
    first_index: int = 0
    """Number of the first image: `--first-index 7 --num-images 1` makes number 7 alone."""
    batch_size: int = 16
    """Images drawn at once; does not change them."""
    tiling: Tiling = field(default_factory=Tiling)
    editing: EditFlags = field(default_factory=EditFlags)
    recreate: str = ""
    """A PNG made by this command: make it again, with the settings stored in it. Give again the files that it was made
    from."""
    output_dir: str = ""
    """Folder for the images: new, empty, or that of the same command, which goes on where it stopped and adds images if
    --num-images is larger. Unset: samples/MODEL-1, or the next number that is free or was stopped."""
    overwrite: bool = False
    """Replace earlier samples in the output folder, once the first new image is there."""


def requests_of(settings: SampleRun, model: ImageModel[Any]) -> list[Request]:
    """The conditions of all images: prompts and classes take turns; of an inversion, one of each; of a path, one."""
    editing = settings.editing
    labels: list[int | None] = [model.class_index(name) for name in settings.class_label]
    inverts, interpolates = bool(editing.invert), editing.interpolates
    if interpolates and (len(labels) > 1 or len(settings.prompt) > 1):
        raise UserError("--interpolate-seed, --interpolate-prompt: a path begins at one --prompt or --class-label")
    if interpolates and model.has_classes and not labels:
        raise UserError("--interpolate-seed: this model draws classes; give one with --class-label")
    if editing.interpolate_prompt is not None and not model.has_text:
        raise UserError("--interpolate-prompt: this model was not trained on text; use --interpolate-seed")
    if not labels and model.has_classes and not settings.prompt and not inverts:
        labels = list(model.drawn_classes)
    if settings.negative_class is not None and not model.has_classes:
        raise UserError("--negative-class: this model is not conditioned on classes; use --negative-prompt")
    negative = None if settings.negative_class is None else model.class_index(settings.negative_class)
    prompts, labels = settings.prompt or ("",), labels or [None]
    count = max(len(settings.prompt), len(labels)) if inverts else settings.num_images
    first = settings.first_index
    requests = [
        Request(
            prompt=prompts[number % len(prompts)],
            negative_prompt=settings.negative_prompt,
            class_label=labels[number % len(labels)],
            negative_class=negative,
        )
        for number in ([first] if interpolates else range(first, first + count))
    ]
    return path_of(editing, requests[0], count) if interpolates else requests


def check_without_diffusion(settings: SampleRun, supported: Sequence[str]) -> None:
    """Refuse, by the name of the flag, what acts on diffusion alone; `supported` are the fields that act here too."""
    for group in (settings.sampling, settings.editing, settings.tiling):
        check_supported(group, supported)


def check_supported(settings: object, supported: Sequence[str]) -> None:
    """`UserError` for a setting that is not at its default and not `supported`."""
    plain = type(settings)()
    for field_ in fields(settings):  # type: ignore[arg-type]
        name = field_.name
        if getattr(settings, name) != getattr(plain, name) and name not in supported:
            raise UserError(WITHOUT_DIFFUSION, remedy=INSTEAD, setting=name)
