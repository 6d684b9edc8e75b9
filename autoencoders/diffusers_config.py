"""config.json of diffusers' `AutoencoderKL` and `VQModel`, and of our own `Autoencoder`, <-> `AutoencoderConfig`.

What diffusers does not know is kept under names that begin with an underscore, which it skips in silence.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_args

from torch import Tensor

from autoencoders.calibration import DEFAULT_SCALE, LOGIT_LAPLACE, class_and_output, is_standard
from autoencoders.coders.vit import ViTConfig
from autoencoders.config import TRAINING_KEYS, AutoencoderConfig, own_settings, settings_of

_CLASS_NAMES = {
    "kl": "AutoencoderKL",
    "vq": "VQModel",
    "cosine_vq": "CosineVQModel",
    "product_vq": "ProductVQModel",
    "residual_vq": "ResidualVQModel",
    "identity": "IdentityAutoencoder",
    "linear": "LinearAutoencoder",
}
_OWN_CLASS = "Autoencoder"  # of the bottlenecks that diffusers has not, and of the coders
_NO_CODER = ("identity", "linear")
_BOTTLENECKS = get_args(AutoencoderConfig.__annotations__["bottleneck"])
_OWN_BOTTLENECKS = {
    "conv": [name for name in _BOTTLENECKS if name not in _CLASS_NAMES],
    "vit": [name for name in _BOTTLENECKS if name not in _NO_CODER],
}
_OF_DIFFUSERS = ("AutoencoderKL", "VQModel")
_BLOCKS = {False: ("DownEncoderBlock2D", "UpDecoderBlock2D"), True: ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")}
_FILE_NAMES = {
    "num_codes": "num_vq_embeddings",
    "code_channels": "vq_embed_dim",
    "attention": "mid_block_add_attention",
}

_SHARED = {
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
_DEFAULTS: dict[str, dict[str, Any]] = {  # what diffusers takes for an absent key
    "AutoencoderKL": {
        **_SHARED,
        "latent_channels": 4,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
    "VQModel": {
        **_SHARED,
        "latent_channels": 3,
        "num_vq_embeddings": 256,
        "vq_embed_dim": None,
        "norm_type": "group",
        "lookup_from_codebook": False,
    },
    "IdentityAutoencoder": {"in_channels": 3},
    _OWN_CLASS: {
        **_SHARED,
        "latent_channels": 4,
        "bottleneck": None,
        "settings": {},
        "coder": "conv",
        "patch_size": None,
        "vit": None,
    },
    "LinearAutoencoder": {"in_channels": 3, "latent_channels": 4, "patch_size": 8},
}
_DEFAULTS |= {
    "CosineVQModel": _DEFAULTS["VQModel"],
    "ProductVQModel": {**_DEFAULTS["VQModel"], "num_quantizers": 4},
    "ResidualVQModel": {**_DEFAULTS["VQModel"], "num_quantizers": 4},
}
_FIXED = {"act_fn": "silu", "norm_type": "group"}  # settings with one supported value


def class_of(config: AutoencoderConfig) -> tuple[str, str]:
    """The library and the class of an autoencoder of these settings, as a model_index.json names them."""
    name = _base_class(config)
    name = name if config.decoder_output == "image" else LOGIT_LAPLACE + name
    return ("diffusers" if name in _OF_DIFFUSERS else "autoencoders"), name


def _base_class(config: AutoencoderConfig) -> str:
    return _CLASS_NAMES.get(config.bottleneck, _OWN_CLASS) if config.coder == "conv" else _OWN_CLASS


def entries_of(
    config: AutoencoderConfig, mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor
) -> dict[str, Any]:
    """The content of config.json for such settings, such a calibration (C,) and such a prior (C,)."""
    base = _base_class(config)
    entries: dict[str, Any] = {"_class_name": class_of(config)[1], "in_channels": config.in_channels}
    if config.bottleneck == "linear":
        entries |= {"latent_channels": config.latent_channels, "patch_size": config.patch_size}
    elif config.coder == "vit":
        entries |= _vit_entries(config)
    elif config.bottleneck != "identity":
        entries |= _coder_entries(config)
    if base == _OWN_CLASS:
        entries |= {"bottleneck": config.bottleneck, "settings": own_settings(config)}
    else:
        if config.bottleneck in ("product_vq", "residual_vq"):
            entries["num_quantizers"] = config.num_quantizers
        if config.is_vq:
            entries |= {"num_vq_embeddings": config.num_codes, "vq_embed_dim": config.channels}
            entries["_training"] = {name: getattr(config, name) for name in TRAINING_KEYS}
    if not is_standard(prior_mean, prior_std):
        entries |= {"_prior_mean": prior_mean.tolist(), "_prior_std": prior_std.tolist()}
    if is_standard(mean, std):
        return entries
    prefix = "" if base == "AutoencoderKL" else "_"
    return entries | {f"{prefix}latents_mean": mean.tolist(), f"{prefix}latents_std": std.tolist()}


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


def _coder_entries(config: AutoencoderConfig) -> dict[str, Any]:
    down, up = zip(
        *(_BLOCKS[level in config.attention_levels] for level in range(len(config.block_out_channels))), strict=True
    )
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
    if config.sample_size is not None:
        entries["sample_size"] = config.sample_size
    if config.bottleneck == "kl":
        entries |= {"use_quant_conv": config.use_quant_conv, "use_post_quant_conv": config.use_quant_conv}
    return entries


def config_of(entries: Mapping[str, Any]) -> AutoencoderConfig:
    """The settings in a config.json; keys that we do not know, or cannot obey, are refused."""
    class_name, output = class_and_output(entries)
    if not isinstance(class_name, str) or class_name not in _DEFAULTS:
        raise ValueError(f"_class_name: expected one of {', '.join(_DEFAULTS)}, got {reprlib.repr(class_name)}")
    defaults = _DEFAULTS[class_name]
    unknown = sorted(key for key in entries if not key.startswith("_") and key not in defaults)
    if unknown:
        raise ValueError(f"unknown keys {', '.join(map(reprlib.repr, unknown[:5]))} for {class_name}")
    values = {**defaults, **entries}
    for key, supported in _FIXED.items():
        if values.get(key, supported) != supported:
            raise ValueError(f"{key}: only {supported!r} is supported, got {reprlib.repr(values[key])}")
    if class_name == "IdentityAutoencoder":
        return AutoencoderConfig(bottleneck="identity", in_channels=values["in_channels"])
    if class_name == "LinearAutoencoder":
        return AutoencoderConfig(bottleneck="linear", **{name: values[name] for name in defaults})
    settings = {**_coder_settings(values, output), **_bottleneck_settings(class_name, values)}
    try:
        return AutoencoderConfig(**settings)
    except ValueError as error:
        name, colon, rest = str(error).partition(":")
        theirs = name if (class_name, name) == (_OWN_CLASS, "num_codes") else _FILE_NAMES.get(name, name)
        raise ValueError(theirs + colon + rest) from None


def _coder_settings(values: Mapping[str, Any], output: str) -> dict[str, Any]:
    inputs, outputs = values["in_channels"], values["out_channels"]
    double = output == "logit_laplace"
    if outputs != (inputs * 2 if double and isinstance(inputs, int) else inputs):
        expected = "twice " if double else ""
        raise ValueError(
            f"out_channels: expected {expected}in_channels {reprlib.repr(inputs)}, got {reprlib.repr(outputs)}"
        )
    size = values["sample_size"]
    shared = {
        "decoder_output": output,
        "in_channels": values["in_channels"],
        "latent_channels": values["latent_channels"],
        "norm_num_groups": values["norm_num_groups"],
        "sample_size": size if isinstance(size, int) else None,  # diffusers allows (height, width)
    }
    if values.get("coder", "conv") != "conv":
        return {**shared, **_vit_settings(values)}
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


def _vit_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    if values["coder"] != "vit":
        raise ValueError(f"coder: expected conv or vit, got {reprlib.repr(values['coder'])}")
    known, own = {each.name for each in fields(ViTConfig)}, values["vit"]
    if not isinstance(own, dict) or not set(own) <= known:
        raise ValueError(f"vit: expected an object with {', '.join(sorted(known))}, got {reprlib.repr(own)}")
    return {"coder": "vit", "patch_size": values["patch_size"], "vit": ViTConfig(**own)}


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


def _bottleneck_settings(class_name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    if class_name == "AutoencoderKL":
        if values["use_quant_conv"] != values["use_post_quant_conv"]:
            raise ValueError("use_quant_conv and use_post_quant_conv: only both or neither is supported")
        return {"bottleneck": "kl", "use_quant_conv": values["use_quant_conv"]}
    if class_name == _OWN_CLASS:
        name = values["bottleneck"]
        known = _OWN_BOTTLENECKS["conv" if values["coder"] == "conv" else "vit"]
        if name not in known:
            raise ValueError(f"bottleneck: expected one of {', '.join(known)}, got {reprlib.repr(name)}")
        return {"bottleneck": name, **settings_of(name, values["settings"])}
    training = values.get("_training", {})
    if not isinstance(training, dict) or not set(training) <= set(TRAINING_KEYS):
        raise ValueError(f"_training: expected an object with {', '.join(TRAINING_KEYS)}, got {reprlib.repr(training)}")
    code, latent = values["vq_embed_dim"], values["latent_channels"]
    return {
        "bottleneck": next(name for name, known in _CLASS_NAMES.items() if known == class_name),
        **({"num_quantizers": values["num_quantizers"]} if "num_quantizers" in values else {}),
        "num_codes": values["num_vq_embeddings"],
        "code_channels": None if code == latent else code,
        **training,
    }
