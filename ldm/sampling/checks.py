"""What is refused before sampling begins: pure functions of the requests, the plan and the networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.models.backbone import Backbone
from ldm.runtime.errors import UserError
from ldm.runtime.text import is_utf8
from ldm.sampling.config import Request, ResolvedSampling, SamplingConfig
from ldm.sampling.energies import energy_names
from ldm.sampling.forward_process import Process
from ldm.sampling.networks import Networks
from ldm.sampling.plan import SamplingPlan, named_branches, parse_guidances

_SETTINGS_OF = {  # setting: the branches that it acts on, a guidance that needs one
    "perturbed_layers": ({"perturbed", "blurred"}, "pag(3)"),
    "blur_sigma": ({"blurred"}, "seg(3)"),
    "skipped_layers": ({"skipped"}, "slg(3)"),
}


def check_requests(requests: Sequence[Request], plan: SamplingPlan, networks: Networks) -> None:
    """`UserError` for conditions that these networks cannot be given under this plan."""
    if not requests:
        raise UserError("nothing to sample: no conditions given")
    needed, guiding_model = plan.needed, networks.guiding_model
    by_label = set(networks.classifiers)
    if guiding_model is not None and guiding_model.conditioner.num_classes > 0:
        by_label.add("weak")
    uses_labels = networks.has_classes or bool(plan.named & by_label)
    for request in requests:
        _check_request(request, plan.config, networks, uses_labels)
    if needed & networks.classifiers.keys() and any(request.class_label is None for request in requests):
        raise UserError("classifier guidance needs to know towards what: give `class_label`")
    if "weak" in needed and guiding_model is not None:
        guiding_model.check({request.class_label for request in requests}, networks.class_names)


def check_channels(folder: Path, unet: Backbone, channels: int, process: Process) -> None:
    """`UserError` for a U-Net that is not of latents of this many channels, with or without a learned variance."""
    takes, gives = unet.config.in_channels, unet.config.out_channels
    expected = (2 * channels,) if process.learned_variance else (channels, 2 * channels)
    if takes == channels and gives in expected:
        return
    what = f"expected {channels} in and {' or '.join(map(str, expected))} out"
    what += " (its scheduler says learned_range)" if process.learned_variance else " (with a learned variance)"
    problem = f"{folder}: its U-Net takes {takes} channels and gives {gives}, its autoencoder's latents have {channels}"
    raise UserError(problem, remedy=what)


def _check_request(request: Request, config: ResolvedSampling, networks: Networks, uses_labels: bool) -> None:
    known = f"its classes are {', '.join(networks.class_names)}" if networks.has_classes else "it is unconditional"
    no_text, no_classes = f"this model was not trained on text ({known})", "this model's U-Net knows no classes"
    for setting in ("prompt", "negative_prompt", "toward_prompt"):
        if not is_utf8(getattr(request, setting) or ""):
            raise UserError("not UTF-8 text (half a surrogate pair)", setting=setting)
    if not networks.has_text:
        if request.prompt:
            raise UserError(no_text, setting="prompt")
        if request.negative_prompt is not None:
            raise UserError(no_text, remedy="use `negative_class`", setting="negative_prompt")
        if request.toward_prompt is not None:
            raise UserError(no_text, setting="interpolate_prompt")
    if request.negative_class is not None and not networks.has_classes:
        raise UserError(no_classes, remedy="use `negative_prompt`", setting="negative_class")
    if request.class_label is not None:
        networks.class_index(request.class_label)
        if not uses_labels:
            raise UserError(no_classes, remedy="add `classifier_scale` or use `prompt`", setting="class_label")
    if request.toward is not None and not 0 <= request.toward <= 1:
        raise UserError(f"a point of a path lies at 0 to 1 of it, got {request.toward}")
    negative = request.negative_prompt is not None or request.negative_class is not None
    if negative and config.guidance_scale in (0, 1) and not config.guidance:
        raise UserError("a negative prompt or class acts through `guidance_scale`, which is off", remedy="try 3")


def check_used(*configs: SamplingConfig) -> None:
    """`UserError` for a setting of a guidance that none of these settings uses, and for one of a prior over codes."""
    named = set[str]().union(*(named_branches(parse_guidances(config)) for config in configs))
    for config in configs:
        for name in ("temperature", "top_k", "top_p"):
            if getattr(config, name) is not None:
                raise UserError("a diffusion model draws no codes", setting=name, remedy="leave it out")
        if unused := [name for name in energy_names(config.energy) if name not in named]:
            guidance = "energy(1)" if unused[0] == "energy" else f"energy(1, name='{unused[0]}')"
            raise UserError(f"nothing guides by {unused[0]!r}", remedy=f'add `guidance` "{guidance}"', setting="energy")
        for name, (branches, guidance) in _SETTINGS_OF.items():
            if getattr(config, name) not in (None, ()) and not branches & named:
                raise UserError(f'does nothing without a guidance such as "{guidance}"', setting=name)
