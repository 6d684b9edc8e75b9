"""What a model samples with where the user gives nothing: one rule for every command and for Python.

- ddim and 50 steps.
- Guidance: the scale 3 for our models that were trained with condition dropout, 1 for those without it or without
  conditions (and for priors over codes), and for models of other families their own default (`FAMILIES`).
- All of it is replaced by what `ldm compare --save-default` has written into the model folder (`FILE`).
- Guidance that the user gives (`guidance_scale`, `classifier_scale` or `guidance`) is all there is: the scale is then 1
  unless it is given too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ldm.runtime.errors import UserError, at_least, user_errors
from ldm.runtime.files import atomic_write_json, read_json
from ldm.runtime.settings import from_mapping
from ldm.runtime.text import printable
from ldm.sampling.config import INDEX, OURS, ResolvedSampling, SamplingConfig
from samplers import get_sampler, parse_guidance, parse_sampler

FILE = "sampling.json"
FAMILIES = {"StableDiffusionPipeline": 7.5}  # guidance_scale of the call of diffusers' pipeline of this name
_GIVEN = ("guidance_scale", "classifier_scale", "guidance")  # with one of these the user gives the guidance
_GUIDANCE = (*_GIVEN, "guidance_interval", "classifier_interval", "perturbed_layers", "blur_sigma", "skipped_layers")
_PLAIN = SamplingConfig()


@dataclass(frozen=True)
class SamplingDefaults:
    """A model's default sampling, and where its guidance comes from."""

    sampler: str = "ddim"
    num_inference_steps: int = 50
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    classifier_scale: float = 0.0
    classifier_interval: tuple[float, float] | None = _PLAIN.classifier_interval
    guidance: tuple[str, ...] = ()
    perturbed_layers: tuple[str, ...] = ()
    blur_sigma: float | None = None
    skipped_layers: tuple[str, ...] = ()
    source: str = "without condition dropout"

    def __post_init__(self) -> None:
        at_least(self, num_inference_steps=1, guidance_scale=0, classifier_scale=0)
        with user_errors():
            get_sampler(parse_sampler(self.sampler)[0])
            for text in self.guidance:
                parse_guidance(text)

    def complete(self, config: SamplingConfig, *, conditional: bool = True) -> ResolvedSampling:
        """`config` with what it leaves open; no guidance where nothing is `conditional`."""
        if isinstance(config, ResolvedSampling):
            return config
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        names = ["sampler", "num_inference_steps"]
        if conditional and not gives_guidance(config):
            names += _GUIDANCE
        values |= {name: getattr(self, name) for name in names if values[name] == getattr(_PLAIN, name)}
        return ResolvedSampling(**values | ({"guidance_scale": 1.0} if values["guidance_scale"] is None else {}))

    def __str__(self) -> str:
        return f"{self.sampler}, {self.num_inference_steps} steps, {_guidance(self)} ({self.source})"

    def taken(self, config: SamplingConfig, resolved: ResolvedSampling) -> str:
        """What `config` left open and is `resolved` so, and where its guidance comes from; "" for nothing."""
        parts = [] if config.sampler is not None else [resolved.sampler]
        parts += [] if config.num_inference_steps is not None else [f"{resolved.num_inference_steps} steps"]
        source = self.source if FILE in self.source else ""
        if gives_guidance(config):
            if config.guidance_scale is None:
                parts.append("guidance scale 1 besides the guidance given")
        elif all(getattr(resolved, name) == getattr(self, name) for name in _GIVEN):
            parts, source = [*parts, _guidance(resolved)], self.source
        else:
            parts.append("no guidance, for there is no prompt or class")
        return ", ".join(parts) + (f" ({source})" if parts and source else "")


def defaults_of_dropout(condition_dropout: float) -> SamplingDefaults:
    """Those of our models by the dropout of their conditions; 0 without conditions."""
    if not condition_dropout:
        return SamplingDefaults()
    return SamplingDefaults(guidance_scale=3.0, source="with condition dropout")


def read_defaults(folder: Path) -> SamplingDefaults | None:
    """What is saved in a model folder, else the default of its family; None where neither is known.

    Its family is the class of its pipeline where others trained it. `UserError` for a file that is not one of ours.
    """
    if (folder / FILE).is_file():
        content = read_json(folder / FILE)
        try:
            decided_by = printable(str(content.pop("decided_by", "")), 120)
            source = f"{FILE}, saved by ldm compare" + (f": {decided_by}" if decided_by else "")
            return from_mapping(SamplingDefaults, {**content, "source": source})
        except UserError as error:
            raise UserError(f"{folder / FILE}: {error}") from None
    index = read_json(folder / INDEX)
    family = None if OURS in index else index.get("_class_name")
    if family in FAMILIES:
        return SamplingDefaults(guidance_scale=FAMILIES[family], source=f"the default of {family}")
    return None


def write_defaults(folder: Path, sampling: ResolvedSampling, decided_by: str) -> None:
    """Make these the defaults of a model folder, as far as they differ from plain ones; `decided_by` says why."""
    always = ("sampler", "num_inference_steps", "guidance_scale")
    names = [field.name for field in fields(SamplingDefaults) if field.name in asdict(sampling)]
    values = {name: getattr(sampling, name) for name in names}
    values = {name: value for name, value in values.items() if name in always or value != getattr(_PLAIN, name)}
    atomic_write_json(folder / FILE, {**values, "decided_by": decided_by})


def _guidance(sampling: SamplingDefaults | ResolvedSampling) -> str:
    """`guidance scale 1, pag(3)`: all guidance of these settings."""
    parts = [f"guidance scale {sampling.guidance_scale:g}"]
    parts += ["interval {:g} to {:g}".format(*sampling.guidance_interval)] if sampling.guidance_interval else []
    parts += [f"classifier scale {sampling.classifier_scale:g}"] if sampling.classifier_scale else []
    return ", ".join([*parts, *sampling.guidance])


def gives_guidance(config: SamplingConfig) -> bool:
    """Whether the settings name the guidance, so that none of the model's is added."""
    return any(getattr(config, name) != getattr(_PLAIN, name) for name in _GIVEN)
