"""config.json of diffusers' `AutoencoderKL` and `VQModel`, and of our own `Autoencoder`, <-> `AutoencoderConfig`.

What diffusers does not know has names that begin with an underscore, which it ignores.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from torch import Tensor

from autoencoders.bottlenecks import BottleneckConfig, bottlenecks, get_bottleneck
from autoencoders.config import AutoencoderConfig, bottleneck_arguments
from autoencoders.settings import ViTConfig

DEFAULT_SCALE = 0.18215  # diffusers' scaling_factor where none is stored
_OWN_CLASS = BottleneckConfig.class_name  # of the bottlenecks and coders that diffusers does not have
_OF_DIFFUSERS = ("AutoencoderKL", "VQModel")
_LOGIT_LAPLACE = "LogitLaplace"  # before the name of a class whose decoder gives the parameters of a likelihood
_BLOCKS = {False: ("DownEncoderBlock2D", "UpDecoderBlock2D"), True: ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")}
_FILE_NAMES = {
    "num_codes": "num_vq_embeddings",
    "code_channels": "vq_embed_dim",
    "attention": "mid_block_add_attention",
}
_SHARED = {  # diffusers' value of an absent key
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": None,
    "scaling_factor": DEFAULT_SCALE,
    "mid_block_add_attention": True,
    "force_upcast": True,
}
_OWN_DEFAULTS = {
    **_SHARED, "latent_channels": 4, "bottleneck": None, "settings": {}, "coder": "conv", "patch_size": None,
    "vit": None,
}  # fmt: skip
_FIXED = {"act_fn": "silu", "norm_type": "group"}  # settings with one supported value


def class_of(config: AutoencoderConfig) -> tuple[str, str]:
    """The library and the class of an autoencoder of these settings, as a model_index.json names them."""
    name = _base_class(config)
    name = name if config.decoder_output == "image" else _LOGIT_LAPLACE + name
    return ("diffusers" if name in _OF_DIFFUSERS else "autoencoders"), name


def class_and_output(entries: Mapping[str, Any]) -> tuple[Any, str]:
    """The class in a config.json, and the output of its decoder, which is the first half of some names."""
    name = entries.get("_class_name")
    if isinstance(name, str) and name.startswith(_LOGIT_LAPLACE):
        return name.removeprefix(_LOGIT_LAPLACE), "logit_laplace"
    return name, "image"


def statistics_prefix(class_name: Any) -> str:
    """Before latents_mean and latents_std, which diffusers knows for `AutoencoderKL` alone."""
    return "" if class_name == "AutoencoderKL" else "_"


def default_scale(class_name: Any) -> float:
    """The scaling_factor of a config.json without one."""
    return float(_defaults(class_name).get("scaling_factor", 1.0))


def entries_of(
    config: AutoencoderConfig, mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor
) -> dict[str, Any]:
    """The content of config.json for such settings, such a calibration (C,) and such a prior (C,)."""
    base, options = _base_class(config), config.options
    entries: dict[str, Any] = {"_class_name": class_of(config)[1], "in_channels": config.in_channels}
    if config.coder_kind == "linear":
        entries |= {"latent_channels": config.latent_channels, "patch_size": config.patch_size}
    elif config.coder_kind == "vit":
        entries |= _vit_entries(config)
    elif config.coder_kind == "conv":
        entries |= _conv_entries(config)
    if base == _OWN_CLASS:
        entries |= {"bottleneck": options.name, "settings": options.settings(config)}
    else:
        entries |= options.entries(config)
    if not _is_standard(prior_mean, prior_std):
        entries |= {"_prior_mean": prior_mean.tolist(), "_prior_std": prior_std.tolist()}
    if _is_standard(mean, std):
        return entries
    prefix = statistics_prefix(base)
    return entries | {f"{prefix}latents_mean": mean.tolist(), f"{prefix}latents_std": std.tolist()}


def config_of(entries: Mapping[str, Any]) -> AutoencoderConfig:
    """The settings in a config.json; keys that are unknown, or cannot be obeyed, are refused."""
    class_name, output = class_and_output(entries)
    defaults = _defaults(class_name)
    unknown = sorted(key for key in entries if not key.startswith("_") and key not in defaults)
    if unknown:
        raise ValueError(f"unknown keys {', '.join(map(reprlib.repr, unknown[:5]))} for {class_name}")
    values = {**defaults, **entries}
    for key, supported in _FIXED.items():
        if values.get(key, supported) != supported:
            raise ValueError(f"{key}: only {supported!r} is supported, got {reprlib.repr(values[key])}")
    options = None if class_name == _OWN_CLASS else _by_class()[class_name]
    if options is not None and options.own_coder:
        return AutoencoderConfig(bottleneck=options.name, **{name: values[name] for name in defaults})
    arguments = _coder_arguments(values, output)
    if options is not None:
        arguments |= options.from_entries(values)
    else:
        arguments |= bottleneck_arguments(_own_bottleneck(values), values["settings"])
    try:
        return AutoencoderConfig(**arguments)
    except ValueError as error:
        name, colon, rest = str(error).partition(":")
        file_name = name if (class_name, name) == (_OWN_CLASS, "num_codes") else _FILE_NAMES.get(name, name)
        raise ValueError(file_name + colon + rest) from None


def _is_standard(mean: Tensor, std: Tensor) -> bool:
    """Whether statistics (C,) are 0 and 1, which are not stored."""
    return bool((mean == 0).all() and (std == 1).all())


def _base_class(config: AutoencoderConfig) -> str:
    return _OWN_CLASS if config.coder_kind == "vit" else config.options.class_name


def _by_class() -> dict[str, type[BottleneckConfig]]:
    built_in = bottlenecks(plugins=False).values()
    return {options.class_name: options for options in built_in if options.class_name != _OWN_CLASS}


def _defaults(class_name: Any) -> dict[str, Any]:
    """The keys of a class in config.json, with the value of an absent one."""
    by_class = _by_class()
    if class_name == _OWN_CLASS:
        return _OWN_DEFAULTS
    if not isinstance(class_name, str) or class_name not in by_class:
        known = ", ".join([*by_class, _OWN_CLASS])
        raise ValueError(f"_class_name: expected one of {known}, got {reprlib.repr(class_name)}")
    options = by_class[class_name]
    return {**({} if options.own_coder else _SHARED), **options.file_defaults}


def _own_bottleneck(values: Mapping[str, Any]) -> type[BottleneckConfig]:
    name, with_conv = values["bottleneck"], values["coder"] == "conv"
    known: list[str] = []
    for plugins in (False, True):  # plug-ins are imported for a name that is not built in
        for options in bottlenecks(plugins=plugins).values():
            if options.class_name == _OWN_CLASS if with_conv else not options.own_coder:
                known.append(options.name)
        if name in known:
            return get_bottleneck(name)
    known = list(dict.fromkeys(known))
    raise ValueError(f"bottleneck: expected one of {', '.join(known)}, or of an installed plug-in, got {name!r:.80}")


def _vit_entries(config: AutoencoderConfig) -> dict[str, Any]:
    entries = {
        "out_channels": config.decoder_channels,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_num_groups,
        "coder": "vit",
        "patch_size": config.patch_size,
        "vit": asdict(config.vit),
        "scaling_factor": 1.0,
    }
    return entries if config.sample_size is None else {**entries, "sample_size": config.sample_size}


def _conv_entries(config: AutoencoderConfig) -> dict[str, Any]:
    levels = range(len(config.block_out_channels))
    down, up = zip(*(_BLOCKS[level in config.attention_levels] for level in levels), strict=True)
    entries = {
        "out_channels": config.decoder_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": list(down),
        "up_block_types": list(reversed(up)),
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "mid_block_add_attention": config.attention,
        "act_fn": "silu",
        "scaling_factor": 1.0,
    }
    return entries if config.sample_size is None else {**entries, "sample_size": config.sample_size}


def _coder_arguments(values: Mapping[str, Any], output: str) -> dict[str, Any]:
    inputs, outputs = values["in_channels"], values["out_channels"]
    double = output == "logit_laplace"
    if outputs != (inputs * 2 if double and isinstance(inputs, int) else inputs):
        expected = "twice " if double else ""
        raise ValueError(f"out_channels: expected {expected}in_channels {inputs!r:.80}, got {outputs!r:.80}")
    size = values["sample_size"]
    shared = {
        "decoder_output": output,
        "in_channels": values["in_channels"],
        "latent_channels": values["latent_channels"],
        "norm_num_groups": values["norm_num_groups"],
        "sample_size": size if isinstance(size, int) else None,  # diffusers allows (height, width)
    }
    if values.get("coder", "conv") != "conv":
        return {**shared, **_vit_arguments(values)}
    for name in ("patch_size", "vit"):
        if values.get(name) is not None:
            raise ValueError(f"{name}: belongs to coder 'vit'")
    return {
        **shared,
        "block_out_channels": values["block_out_channels"],
        "layers_per_block": values["layers_per_block"],
        "attention": values["mid_block_add_attention"],
        "attention_levels": _attention_levels(values),
    }


def _vit_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    if values["coder"] != "vit":
        raise ValueError(f"coder: expected conv or vit, got {reprlib.repr(values['coder'])}")
    known, vit = {entry.name for entry in fields(ViTConfig)}, values["vit"]
    if not isinstance(vit, dict) or not set(vit) <= known:
        raise ValueError(f"vit: expected an object with {', '.join(sorted(known))}, got {reprlib.repr(vit)}")
    return {"coder": "vit", "patch_size": values["patch_size"], "vit": ViTConfig(**vit)}


def _attention_levels(values: Mapping[str, Any]) -> tuple[int, ...]:
    widths, down, up = (values[key] for key in ("block_out_channels", "down_block_types", "up_block_types"))
    if not all(isinstance(value, list) for value in (widths, down, up)) or not len(widths) == len(down) == len(up):
        raise ValueError("block_out_channels, down_block_types and up_block_types: expected lists of one length")
    kinds = {blocks: attention for attention, blocks in _BLOCKS.items()}
    levels = []
    for level, pair in enumerate(zip(down, reversed(up), strict=True)):
        if not all(isinstance(name, str) for name in pair) or pair not in kinds:
            known = " or ".join("/".join(blocks) for blocks in _BLOCKS.values())
            raise ValueError(f"blocks of level {level}: expected {known}, got {reprlib.repr(pair)}")
        if kinds[pair]:
            levels.append(level)
    return tuple(levels)
