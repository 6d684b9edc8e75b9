"""The flags of `ldm sample` that begin in an image or go between two samples, checked and carried out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ldm.runtime.errors import UserError
from ldm.sampling.config import MAX_ITERATIONS, Request, ResolvedSampling, Unmasked, check_strength

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.sampling.editing import Edit
    from ldm.sampling.pipeline import Pipeline
    from ldm.sampling.plan import SamplingPlan
    from ldm.sampling.source_image import SourceImage


@dataclass(frozen=True)
class EditFlags:
    """Begin in an image instead of in noise, or go from one sample to another."""

    init_image: str = ""
    """An image to begin from, of any size: cut to a square, encoded, noised, and sampled on from there."""
    strength: float | None = None
    """Share of the sampling steps that --init-image goes through, in (0, 1]; 1 is pure noise. Unset: 0.6, with --mask
    1."""
    mask: str = ""
    """An image of the size of --init-image: what is white is repainted, the rest (black or transparent) kept."""
    unmasked: Unmasked = "reconstruction"
    """Where the pixels kept by --mask come from: reconstruction (of the autoencoder; no seam) or original."""
    invert: str = ""
    """An image to invert by DDIM into its noise, from which one image is drawn for each prompt or class."""
    source_prompt: str | None = None
    """What the image of --invert shows; unset: the (first) --prompt."""
    source_class: str | None = None
    """The class of the image of --invert; unset: the (first) --class-label."""
    inversion_iterations: int = 3
    """Network evaluations a step of the inversion: more are more exact."""
    interpolate_seed: int | None = None
    """Go from the image of --seed to that of this seed, in --num-images points."""
    interpolate_prompt: str | None = None
    """Go from --prompt to this prompt, in --num-images points."""

    @property
    def interpolates(self) -> bool:
        return self.interpolate_seed is not None or self.interpolate_prompt is not None

    def check(self) -> None:
        """`UserError` for flags that do not go together, before anything is loaded."""
        source = "--source-prompt" if self.source_prompt is not None else "--source-class"
        has_source = self.source_prompt is not None or self.source_class is not None
        for wrong, problem in (
            (self.init_image and self.invert, "--init-image and --invert: give one of them"),
            (self.mask and not self.init_image, "--mask: give the image to repaint with --init-image"),
            (self.strength is not None and not self.init_image, "--strength: give the image with --init-image"),
            (has_source and not self.invert, f"{source}: is about the image of --invert; give that too"),
            (self.invert and self.interpolates, "--invert: has its own noise; leave out --interpolate-seed, -prompt"),
        ):
            if wrong:
                raise UserError(problem)
        if self.strength is not None:
            check_strength(self.strength)
        if not 1 <= self.inversion_iterations <= MAX_ITERATIONS:
            raise UserError(f"--inversion-iterations: expected 1 to {MAX_ITERATIONS}, got {self.inversion_iterations}")


@dataclass(frozen=True)
class EditRecord:
    """The metadata of a PNG about the image that it was made from; files by name and SHA-256 only."""

    kind: Literal["init-image", "invert"]
    image: str
    image_sha256: str
    strength: float = 1.0
    mask: str = ""
    mask_sha256: str = ""
    unmasked: Unmasked = "reconstruction"
    source_prompt: str = ""
    source_class: int | None = None
    inversion_iterations: int = 1

    def flags(self, given: EditFlags, where: str) -> EditFlags:
        """The flags that make the image again, with the user's own files."""
        source = given.invert if self.kind == "invert" else given.init_image
        for flag, file, name in ((f"--{self.kind}", source, self.image), ("--mask", given.mask, self.mask)):
            if name and not file:
                raise UserError(f"--recreate {where}: it was made from the image {name}; give that with {flag}")
        strength = self.strength if self.kind == "init-image" else None
        label = None if self.source_class is None else str(self.source_class)
        return dataclasses.replace(
            given,
            unmasked=self.unmasked,
            source_prompt=self.source_prompt,
            inversion_iterations=self.inversion_iterations,
            strength=strength,
            source_class=label,
        )


@dataclass(frozen=True, eq=False)
class PreparedEdit:
    """An edit ready to be sampled, its record for PNGs, images to write beside the samples, and lines to print."""

    edit: Edit
    record: EditRecord
    beside: dict[str, Tensor]
    lines: tuple[str, ...] = ()


def prepare(
    flags: EditFlags,
    pipeline: Pipeline,
    requests: list[Request],
    plan: SamplingPlan,
    expected: EditRecord | None = None,
) -> PreparedEdit | None:
    """Read the images, refuse what cannot be, then encode or invert; None where the flags name no image."""
    if not (flags.init_image or flags.invert):
        return None
    from ldm.sampling.editing import image_to_image
    from ldm.sampling.source_image import read_image, read_mask

    setting, path = ("invert", flags.invert) if flags.invert else ("init_image", flags.init_image)
    source = read_image(path, pipeline.image_size, setting)
    mask, mask_sha256 = read_mask(flags.mask, source) if flags.mask else (None, "")
    if expected is not None and (source.sha256, mask_sha256) != (expected.image_sha256, expected.mask_sha256):
        setting, path = (setting, path) if source.sha256 != expected.image_sha256 else ("mask", flags.mask)
        problem = "not the file that the image to recreate was made from (its SHA-256 differs)"
        raise UserError(problem, setting=setting, value=path)
    if flags.invert:
        return _inverted(flags, pipeline, requests, plan.config, source)
    strength = flags.strength or (1.0 if flags.mask else 0.6)
    edit = image_to_image(pipeline, source.pixels, plan.config, strength, mask=mask, unmasked=flags.unmasked)
    record = EditRecord(
        kind="init-image",
        image=Path(path).name,
        image_sha256=source.sha256,
        strength=strength,
        mask=Path(flags.mask).name if flags.mask else "",
        mask_sha256=mask_sha256,
        unmasked=flags.unmasked,
    )
    covers_all = edit.start.repaint is not None and bool(edit.start.repaint.all())
    note = "note: --mask touches every latent, so nothing depends on the rest; use a smaller mask"
    return PreparedEdit(edit, record, {}, (note,) if covers_all else ())


def _inverted(
    flags: EditFlags, pipeline: Pipeline, requests: list[Request], sampling: ResolvedSampling, source: SourceImage
) -> PreparedEdit:
    from ldm.evaluation.metrics.image_quality import psnr
    from ldm.sampling.editing import Edit, invert

    prompt = requests[0].prompt if flags.source_prompt is None else flags.source_prompt
    label = requests[0].class_label if flags.source_class is None else pipeline.class_index(flags.source_class)
    condition = Request(prompt=prompt, class_label=label if pipeline.has_classes else None)
    inversion = invert(pipeline, source.pixels, condition, sampling, iterations=flags.inversion_iterations)
    again, plain, original = (x[None].cpu() for x in (inversion.reconstruction, inversion.plain, source.pixels))
    record = EditRecord(
        kind="invert",
        image=Path(flags.invert).name,
        image_sha256=source.sha256,
        source_prompt=prompt,
        source_class=condition.class_label,
        inversion_iterations=flags.inversion_iterations,
    )
    line = (
        f"inverted with {inversion.evaluations} network evaluations; drawn again: "
        f"{float(psnr(again, plain)):.1f} dB PSNR of the plain reconstruction, "
        f"{float(psnr(again, original)):.1f} dB of the image "
        f"(plain reconstruction: {float(psnr(plain, original)):.1f} dB)"
    )
    return PreparedEdit(
        Edit(inversion.start, lambda images: images), record, {"reconstruction": inversion.reconstruction}, (line,)
    )


def path_of(flags: EditFlags, request: Request, count: int) -> list[Request]:
    """The points of an interpolation from one end to the other."""
    if count < 2:
        raise UserError(f"--interpolate-seed, --interpolate-prompt: need 2 points or more, got --num-images {count}")
    to, seed = flags.interpolate_prompt, flags.interpolate_seed
    return [
        dataclasses.replace(request, toward=number / (count - 1), toward_prompt=to, toward_seed=seed)
        for number in range(count)
    ]
