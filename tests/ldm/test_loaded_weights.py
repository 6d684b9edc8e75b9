"""Every part that is loaded is compared with what is expected of it: names, shapes, types, finite numbers."""

import dataclasses
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoders import Autoencoder, AutoencoderConfig, Generator, GeneratorConfig
from autoencoders.priors import CodeGrid, CodePriors, PriorConfig, PriorShape
from ldm.conditioning.text_encoder import TextEncoder, embedded_encoder
from ldm.evaluation.features.small_network import NetworkMetadata, SmallNetwork
from ldm.evaluation.features.train_network import _load, _store
from ldm.models.classifier import ClassifierConfig, NoisyClassifier
from ldm.models.unet import UNet
from ldm.models.unet_config import UNetConfig
from ldm.training.averages import PowerAverages
from ldm.training.checkpoint import load_weights, optimizer_tensors, read_optimizer_tensors
from ldm.training.config import AveragesConfig, TrainingConfig
from ldm.training.optimizers import make_optimizer

SMALL = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
TINY = UNetConfig(**SMALL, attention=(False,), in_channels=4, out_channels=4, sample_size=8, attention_head_dim=8)
CLASSES = ClassifierConfig(
    **SMALL, attention=(False,), in_channels=4, sample_size=8, num_classes=2, attention_head_dim=8
)
SIZES = {"width": 8, "layers": 1, "heads": 2, "vocab_size": 520, "max_tokens": 8, "least_tokens": 2, "seed": 0}


def trained(kind="adamw"):
    """A network after one step, and its optimiser."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 8))
    optimizer = make_optimizer(model, TrainingConfig(optimizer=kind))
    model(torch.randn(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


FILE = "averages.safetensors"  # of all parts of a checkpoint, which `resume` of the averages expects


def checkpointed(write, read):
    """Something of a checkpoint: `write(model, optimizer)` gives its tensors, `read(file, model, optimizer)` loads."""
    model, optimizer = trained()
    return (
        lambda folder: save_file({n: t.clone() for n, t in write(model, optimizer).items()}, folder / FILE),
        lambda folder: read(folder / FILE, model, optimizer),
    )


def averages(model):
    return PowerAverages(model, AveragesConfig(ema_lengths=(0.1,)))


def text_parts():
    encoder = embedded_encoder(["a red star", "a blue heart"], **SIZES)
    return encoder.save, lambda folder: TextEncoder.load(folder, 8, "embedded", "embedded")


PARTS = {  # how each is written into a folder and loaded from it
    "autoencoder": lambda: (
        Autoencoder(AutoencoderConfig(block_out_channels=(8,), norm_num_groups=4)).save_pretrained,
        Autoencoder.from_pretrained,
    ),
    "generator": lambda: (
        Generator(GeneratorConfig(block_out_channels=(8, 8), norm_num_groups=4, noise_size=2)).save_pretrained,
        Generator.from_pretrained,
    ),
    "prior": lambda: (
        CodePriors(PriorConfig(width=8, layers=1), PriorShape((CodeGrid(4, 2, 2),), 0, None), seed=0).save_pretrained,
        CodePriors.from_pretrained,
    ),
    "unet": lambda: (UNet(TINY).save_pretrained, UNet.from_pretrained),
    "classifier": lambda: (NoisyClassifier(CLASSES).save_pretrained, NoisyClassifier.from_pretrained),
    "text_encoder": text_parts,
    "checkpoint": lambda: checkpointed(lambda m, _: m.state_dict(), lambda file, m, _: load_weights(m, file)),
    "moments": lambda: checkpointed(
        lambda m, o: optimizer_tensors(o, m), lambda file, m, o: read_optimizer_tensors(file, o, m, [])
    ),
    "averages": lambda: checkpointed(
        lambda m, _: averages(m).tensors()["averages"], lambda file, m, _: averages(m).resume(file.parent, 1, None)
    ),
}


def remove(tensors, name):
    tensors.pop(name)


def rename(tensors, name):
    tensors[name + "_"] = tensors.pop(name)


DAMAGES = {
    "removed": (remove, "found nothing"),
    "renamed": (rename, "found nothing"),
    "shape": (lambda t, name: t.update({name: t[name][..., None].contiguous()}), "expected"),
    "whole numbers": (lambda t, name: t.update({name: t[name].int()}), "found I32"),
    "NaN": (lambda t, name: t[name].fill_(torch.nan), "expected finite numbers"),
    "infinity": (lambda t, name: t[name].view(-1)[-1:].fill_(torch.inf), "expected finite numbers"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_with_two_wrong_tensors_is_refused_with_both_names(part, damage, tmp_path):
    write, load = PARTS[part]()
    write(tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    tensors, (change, problem) = load_file(file), DAMAGES[damage]
    first, last = [sorted(tensors)[0], sorted(tensors)[-1]]
    for name in (first, last):
        change(tensors, name)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=problem) as refusal:
        load(tmp_path)
    text = str(refusal.value)
    assert first in text and last in text and str(tmp_path) in text and "\n" not in text


@pytest.mark.parametrize("part", PARTS)
def test_a_whole_part_is_loaded_and_a_foreign_or_cut_one_is_refused_in_a_short_line(part, tmp_path):
    write, load = PARTS[part]()
    write(tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    content = file.read_bytes()
    load(tmp_path)
    save_file({"x": torch.ones(1)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"; and \d+ more|'x'") as refusal:
        load(tmp_path)
    assert len(str(refusal.value)) < 1200
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"not a whole|cannot read its weights"):
        load(tmp_path)


def test_parameters_that_had_no_gradient_have_no_moments(tmp_path):
    model, optimizer = trained()
    save_file(
        {n: t.clone() for n, t in optimizer_tensors(optimizer, model).items() if "2.bias" not in n}, tmp_path / "x"
    )
    with pytest.raises(ValueError, match=r"2\.bias/exp_avg"):
        read_optimizer_tensors(tmp_path / "x", optimizer, model, [])
    assert read_optimizer_tensors(tmp_path / "x", optimizer, model, ["2.bias"])
    assert read_optimizer_tensors(tmp_path / "x", optimizer, model, None), "a checkpoint that does not record them"


def test_muon_has_one_moment(tmp_path):
    model, optimizer = trained("muon")
    tensors = {n: t.clone() for n, t in optimizer_tensors(optimizer, model).items()}
    save_file(tensors, tmp_path / "x")
    assert read_optimizer_tensors(tmp_path / "x", optimizer, model, []).keys() == tensors.keys()


@pytest.mark.parametrize("damage", ["bit", "NaN", "removed", "text"])
def test_a_damaged_network_of_features_is_trained_anew_and_said(damage, tmp_path, caplog):
    path, heads = tmp_path / "x.safetensors", {"class": ("a", "b")}
    _store(path, SmallNetwork(16, heads), NetworkMetadata("data", 16, heads, "class", {}, 1, 1))
    assert _load(path) is not None and _load(tmp_path / "y") is None
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    with caplog.at_level(logging.WARNING, "ldm"):
        if damage == "bit":
            path.write_bytes(content)
        elif damage == "text":
            path.write_text("x")
        else:
            tensors, metadata = load_file(path), dataclasses.asdict(_load(path)[1])
            DAMAGES[damage][0](tensors, sorted(tensors)[0])
            save_file(tensors, path, {"facts": __import__("json").dumps(metadata)})
        assert _load(path) is None
    assert "trained anew" in caplog.text
