"""config.json of diffusers' `AutoencoderKL` and `VQModel`, and of our own `Autoencoder`, <-> `AutoencoderConfig`.

What diffusers does not know is kept under names that begin with an underscore, which it skips in silence.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from autoencoders.config import AutoencoderConfig, own_settings, settings_of

_CLASS_NAMES = {
    "kl": "AutoencoderKL",
    "vq": "VQModel",
    "cosine_vq": "CosineVQModel",
    "product_vq": "ProductVQModel",
    "residual_vq": "ResidualVQModel",
    "identity": "IdentityAutoencoder",
    "linear": "LinearAutoencoder",
}
_OWN_CLASS = "Autoencoder"  # of the bottlenecks that diffusers has not
_OWN_BOTTLENECKS = [
    name for name in get_args(AutoencoderConfig.__annotations__["bottleneck"]) if name not in _CLASS_NAMES
]
_TRAINING_KEYS = ("codebook", "codebook_init", "codebook_decay", "commitment_beta", "commitment_on", "revive_after")
_OF_DIFFUSERS = ("AutoencoderKL", "VQModel")
_BLOCKS = {False: ("DownEncoderBlock2D", "UpDecoderBlock2D"), True: ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")}
_FILE_NAMES = {
    "num_codes": "num_vq_embeddings",
    "code_channels": "vq_embed_dim",
    "attention": "mid_block_add_attention",
}
_LARGEST = 1e20  # of a number in the calibration

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
    "scaling_factor": 0.18215,
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
    _OWN_CLASS: {**_SHARED, "latent_channels": 4, "bottleneck": None, "settings": {}},
    "LinearAutoencoder": {"in_channels": 3, "latent_channels": 4, "patch_size": 8},
}
_DEFAULTS |= {
    "CosineVQModel": _DEFAULTS["VQModel"],
    "ProductVQModel": {**_DEFAULTS["VQModel"], "num_quantizers": 4},
    "ResidualVQModel": {**_DEFAULTS["VQModel"], "num_quantizers": 4},
}
_LOGIT_LAPLACE = "LogitLaplace"  # before the class of a model whose decoder gives that: no class of diffusers
_FIXED = {"act_fn": "silu", "norm_type": "group"}  # settings with one supported value


def class_of(bottleneck: str, output: str = "image") -> tuple[str, str]:
    """The library and the class of an autoencoder with this bottleneck, as a model_index.json names them."""
    name = _CLASS_NAMES.get(bottleneck, _OWN_CLASS)
    name = name if output == "image" else _LOGIT_LAPLACE + name
    return ("diffusers" if name in _OF_DIFFUSERS else "autoencoders"), name


def entries_of(
    config: AutoencoderConfig, mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor
) -> dict[str, Any]:
    """The content of config.json for such settings, such a calibration (C,) and such a prior (C,)."""
    entries: dict[str, Any] = {
        "_class_name": class_of(config.bottleneck, config.decoder_output)[1],
        "in_channels": config.in_channels,
    }
    if config.bottleneck == "linear":
        entries |= {"latent_channels": config.latent_channels, "patch_size": config.patch_size}
    elif config.bottleneck != "identity":
        entries |= _coder_entries(config)
    if config.bottleneck in ("product_vq", "residual_vq"):
        entries["num_quantizers"] = config.num_quantizers
    if config.is_vq:
        entries |= {"num_vq_embeddings": config.num_codes, "vq_embed_dim": config.channels}
        entries["_training"] = {name: getattr(config, name) for name in _TRAINING_KEYS}
    if config.bottleneck in _OWN_BOTTLENECKS:
        entries |= {"bottleneck": config.bottleneck, "settings": own_settings(config)}
    if not _standard(prior_mean, prior_std):
        entries |= {"_prior_mean": prior_mean.tolist(), "_prior_std": prior_std.tolist()}
    if _standard(mean, std):
        return entries
    prefix = "" if config.bottleneck == "kl" else "_"
    return entries | {f"{prefix}latents_mean": mean.tolist(), f"{prefix}latents_std": std.tolist()}


def _standard(mean: Tensor, std: Tensor) -> bool:
    return bool((mean == 0).all() and (std == 1).all())


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
    class_name, output = _class_and_output(entries)
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


def _class_and_output(entries: Mapping[str, Any]) -> tuple[Any, str]:
    """The class, and what its decoder gives, which is the first half of some names."""
    name = entries.get("_class_name")
    likelihood = isinstance(name, str) and name.startswith(_LOGIT_LAPLACE)
    return (name.removeprefix(_LOGIT_LAPLACE), "logit_laplace") if likelihood else (name, "image")  # type: ignore[union-attr]


def _coder_settings(values: Mapping[str, Any], output: str) -> dict[str, Any]:
    inputs, outputs = values["in_channels"], values["out_channels"]
    double = output == "logit_laplace"
    if outputs != (inputs * 2 if double and isinstance(inputs, int) else inputs):
        expected = "twice " if double else ""
        raise ValueError(
            f"out_channels: expected {expected}in_channels {reprlib.repr(inputs)}, got {reprlib.repr(outputs)}"
        )
    size = values["sample_size"]
    return {
        "decoder_output": output,
        "in_channels": values["in_channels"],
        "latent_channels": values["latent_channels"],
        "block_out_channels": values["block_out_channels"],
        "layers_per_block": values["layers_per_block"],
        "norm_num_groups": values["norm_num_groups"],
        "attention": values["mid_block_add_attention"],
        "attention_levels": _attention_levels(values),
        "sample_size": size if isinstance(size, int) else None,  # diffusers allows (height, width)
    }


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
        if name not in _OWN_BOTTLENECKS:
            raise ValueError(f"bottleneck: expected one of {', '.join(_OWN_BOTTLENECKS)}, got {reprlib.repr(name)}")
        return {"bottleneck": name, **settings_of(name, values["settings"])}
    training = values.get("_training", {})
    if not isinstance(training, dict) or not set(training) <= set(_TRAINING_KEYS):
        raise ValueError(
            f"_training: expected an object with {', '.join(_TRAINING_KEYS)}, got {reprlib.repr(training)}"
        )
    code, latent = values["vq_embed_dim"], values["latent_channels"]
    return {
        "bottleneck": next(name for name, known in _CLASS_NAMES.items() if known == class_name),
        **({"num_quantizers": values["num_quantizers"]} if "num_quantizers" in values else {}),
        "num_codes": values["num_vq_embeddings"],
        "code_channels": None if code == latent else code,
        **training,
    }


def calibration_of(entries: Mapping[str, Any], channels: int) -> tuple[Tensor, Tensor]:
    """calibrated = (z - latents_mean) / latents_std * scaling_factor, with shift_factor for an absent latents_mean."""
    class_name = _class_and_output(entries)[0]
    own = "" if class_name == "AutoencoderKL" else "_"
    mean = entries.get(f"{own}latents_mean")
    std = entries.get(f"{own}latents_std")
    own_class = class_name in ("IdentityAutoencoder", "LinearAutoencoder")
    default = 1.0 if own_class else _SHARED["scaling_factor"]
    scale = _numbers("scaling_factor", entries.get("scaling_factor", default), 1, positive=True)
    shift = entries.get("shift_factor")
    if mean is not None and shift is not None:
        raise ValueError("latents_mean and shift_factor: expected one of them, got both")
    center = _numbers("shift_factor", shift or 0.0, 1).expand(channels)
    if mean is not None:
        center = _numbers(f"{own}latents_mean", mean, channels)
    spread = torch.ones(channels) if std is None else _numbers(f"{own}latents_std", std, channels, positive=True)
    return center.clone(), spread / scale


def prior_of(entries: Mapping[str, Any], channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of the prior in the units of the latents; 0 and 1 where it is not said."""
    mean, std = entries.get("_prior_mean"), entries.get("_prior_std")
    if mean is None and std is None:
        return torch.zeros(channels), torch.ones(channels)
    return _numbers("_prior_mean", mean, channels), _numbers("_prior_std", std, channels, positive=True)


def _numbers(key: str, value: Any, length: int, positive: bool = False) -> Tensor:
    listed = value if isinstance(value, list) else [value]
    for number in listed:
        fine = isinstance(number, (int, float)) and not isinstance(number, bool) and -_LARGEST < number < _LARGEST
        if not fine or (positive and not number > 1 / _LARGEST):
            expected = "positive numbers" if positive else "finite numbers"
            raise ValueError(f"{key}: expected {expected}, got {reprlib.repr(number)}")
    if len(listed) != length:
        raise ValueError(f"{key}: expected {length} numbers, got {len(listed)}")
    return torch.tensor(listed, dtype=torch.float32)
