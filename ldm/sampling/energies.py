"""Energies of images, to be guided down: a colour, an image known in parts, a likeness; or a user's own function."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencoders import Autoencoder
from ldm.models.classifier import NoisyClassifier
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.text import suggest
from ldm.sampling.networks import Networks
from ldm.sampling.source_image import read_image
from samplers import colour, inpainting, parse_call, similarity

Function: TypeAlias = Callable[[Tensor], Tensor]  # images or latents -> (B,)
KNOWN = ("colour", "inpainting", "similarity")


@dataclass(frozen=True)
class Energy:
    """A differentiable function, one number a sample, that guidance makes small.

    `space`: "image", it takes decoded images (B, 3, H, W), about [-1, 1] and not clipped; "latent", latents (B, C, h,
    w) of unit variance. The others as in `samplers.with_energy`: of the denoised estimate, through the network's
    derivative or not, or of the noisy latents themselves (decoded as they are, for "image"); whether the gradient gives
    the direction alone; and the least value that the function can have, None where that is not known.
    """

    function: Function
    of: Literal["x0", "x"] = "x0"
    jacobian: bool = True
    space: Literal["image", "latent"] = "image"
    normalize: bool = True
    minimum: float | None = None

    def of_latents(self, autoencoder: Autoencoder) -> Function:
        """The energy as a function of latents (B, C, h, w)."""
        if self.space == "latent":
            return self.function
        return lambda latents: self.function(autoencoder.decode(latents))


def parse_energies(texts: Sequence[str], networks: Networks) -> dict[str, Energy]:
    """Energies by name from texts such as "colour([0.8, -0.6, -0.6], name='red')".

    Without a name the first is "energy", the next "energy2", "energy3", ... `UserError` for what is unknown, does not
    fit or cannot be read.
    """
    energies: dict[str, Energy] = {}
    for name, text in zip(energy_names(texts), texts, strict=True):
        with user_errors(setting="energy", value=text):
            kind, args, options = parse_call(text)
            options.pop("name", None)
            energies[name] = _energy(kind, args, options, networks)
    return energies


def energy_names(texts: Sequence[str]) -> tuple[str, ...]:
    """The names of energies given as text, each once; nothing else of them is checked."""
    names: list[str] = []
    for number, text in enumerate(texts, 1):
        with user_errors(setting="energy", value=text):
            name = parse_call(text)[2].get("name", "energy" if number == 1 else f"energy{number}")
            if not isinstance(name, str) or not name.isidentifier():
                raise ValueError(f"a name is a word of letters and digits; got {name!r}")
            if name in names:
                raise ValueError(f"there are two of the name {name!r}")
        names.append(name)
    return tuple(names)


def files_of(texts: Sequence[str]) -> list[str]:
    """Those of the texts that name files."""
    return [text for text in texts if text.split("(")[0].strip() != "colour"]


def _energy(kind: str, args: tuple[Any, ...], options: dict[str, Any], networks: Networks) -> Energy:
    if kind not in KNOWN:
        raise UserError(f"there is no energy {kind!r}", remedy=suggest(kind, KNOWN))
    of, flags = options.pop("of", "x0"), {name: options.pop(name, True) for name in ("jacobian", "normalize")}
    if of not in ("x0", "x") or not all(isinstance(flag, bool) for flag in flags.values()):
        given = f"got {of!r}, {flags['jacobian']!r} and {flags['normalize']!r}"
        raise UserError('of must be "x0" or "x", jacobian and normalize True or False', remedy=given)
    names = {"colour": ("target",), "inpainting": ("image", "mask"), "similarity": ("reference",)}[kind]
    values = dict(zip(names, args, strict=False)) | options
    if len(args) > len(names) or set(values) != set(names):
        raise UserError(f"{kind} takes {', '.join(names)}, and name, of, jacobian, normalize")
    make = functools.partial(Energy, of=of, **flags, minimum=0.0)
    if kind == "colour":
        return make(function=colour(_colour(values["target"])))
    images = {name: _image(values[name], networks, "black" if name == "mask" else "white") for name in names}
    if kind == "inpainting":
        known = 1 - (images["mask"].mean(1, keepdim=True) > 0).float()  # (1, 1, H, W): black and transparent are kept
        return make(function=inpainting(images["image"], known))
    features = functools.partial(_features, networks.classifier)
    with torch.no_grad():
        reference = features(networks.autoencoder.encode(images["reference"]).mean.float())
    return make(function=similarity(features, reference), space="latent")


def _image(path: object, networks: Networks, background: str) -> Tensor:
    """An image file as the model takes it, (1, 3, H, W) in [-1, 1] on the device."""
    if not isinstance(path, str):
        raise UserError("expected the name of an image file", remedy=f"got {path!r}")
    return read_image(path, networks.image_size, background=background).pixels[None].to(networks.device)


def _colour(target: object) -> list[float]:
    numbers = list(target) if isinstance(target, list | tuple) else []
    plain = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if len(numbers) != 3 or not plain or any(not -1 <= n <= 1 for n in numbers):
        raise UserError("a colour is [red, green, blue], each from -1 to 1", remedy=f"got {target!r}")
    return numbers


def _features(classifier: NoisyClassifier | None, latents: Tensor) -> Tensor:
    """What is compared of latents (B, C, h, w): the classifier's middle, averaged over space, (B, D); without one the
    latents themselves on a grid of 4 x 4.
    """
    if classifier is None:
        return F.adaptive_avg_pool2d(latents, 4).flatten(1)
    return classifier.features(latents, latents.new_zeros(len(latents)))


def all_energies(given: Mapping[str, Function | Energy], texts: Sequence[str], networks: Networks) -> dict[str, Energy]:
    """A user's functions by name and those of the settings; a bare function is of the decoded image of x0_hat."""
    own = {name: energy if isinstance(energy, Energy) else Energy(energy) for name, energy in given.items()}
    parsed = parse_energies(texts, networks)
    if twice := own.keys() & parsed.keys():
        raise UserError(f"there are two of the name {min(twice)!r}", setting="energy")
    return own | parsed
