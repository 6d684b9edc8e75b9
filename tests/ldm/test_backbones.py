"""Every registered network: shapes, its folder, and conditions computed once; and one of another package, sampled."""

import json
import shutil

import pytest
import torch

from ldm.models.backbone import _backbones, load_backbone
from ldm.models.unet import UNet, UNetConfig

SMALL = {  # a new backbone is added here
    "UNet2DConditionModel": lambda: UNet(
        UNetConfig(
            sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
            attention=(False, True), attention_head_dim=8, norm_num_groups=4, num_class_embeds=5, cross_attention_dim=6,
        )
    ),
}  # fmt: skip
PLUG_IN = """
import torch
from torch import nn
from types import SimpleNamespace
from ldm.models.backbone import Backbone, backbone

@backbone("Pointwise2D")
class Pointwise2D(Backbone):
    def __init__(self, channels, size, classes):
        super().__init__()
        self.config = SimpleNamespace(in_channels=channels, out_channels=channels, sample_size=size)
        self.classes = classes
        self.mix = nn.Conv2d(channels, channels, 1)
        self.embedding = nn.Embedding(classes, channels)

    def forward(self, x, t, *, class_labels=None, context=None):
        return self.mix(x) + self.embedding(class_labels)[:, :, None, None]

    def config_entries(self):
        return {"channels": self.config.in_channels, "size": self.config.sample_size, "classes": self.classes}

    @classmethod
    def from_entries(cls, entries):
        return cls(**entries)
"""


@pytest.mark.parametrize("name", sorted(_backbones))
def test_every_backbone_keeps_its_shape_folder_and_conditions(name, tmp_path):
    torch.manual_seed(0)
    network = SMALL[name]().eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x, t = torch.randn(2, network.config.in_channels, 8, 8), torch.tensor([3.0, 700.0])
    labels, context = torch.tensor([1, 4]), torch.randn(2, 7, 6)
    output = network(x, t, class_labels=labels, context=context)
    assert output.shape == (2, network.config.out_channels, 8, 8)
    assert not torch.equal(output, network(x, t, class_labels=labels.flip(0), context=context))
    torch.testing.assert_close(network(x, t, **network.fixed_inputs(labels, context)), output, rtol=1e-5, atol=1e-5)
    network.save_pretrained(tmp_path)
    again = load_backbone(tmp_path)
    assert type(again) is type(network) and torch.equal(again(x, t, class_labels=labels, context=context), output)


def test_a_network_of_another_package_is_sampled(models, ldm, refused, tmp_path, monkeypatch):
    site, model = tmp_path / "site", tmp_path / "model"
    shutil.copytree(models.classes, model, ignore=shutil.ignore_patterns("checkpoint-*"))
    entries = json.loads((model / "unet" / "config.json").read_text())
    sizes = {"channels": entries["in_channels"], "size": entries["sample_size"], "classes": entries["num_class_embeds"]}
    (model / "unet" / "config.json").write_text(json.dumps({"_class_name": "Pointwise2D", **sizes}))
    (model / "model_manifest.json").unlink()  # it is edited on purpose
    sample = ["sample", model, "--num-inference-steps", 2, "--num-images", 2, "--device", "cpu", "--output-dir"]
    refused([*sample, tmp_path / "out"], "no network of the class 'Pointwise2D'", "UNet2DConditionModel")
    site.mkdir()
    (site / "plug_network.py").write_text(PLUG_IN)
    info = site / "plug_network-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug_network\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ldm.networks]\nPointwise2D = plug_network:Pointwise2D\n")
    monkeypatch.syspath_prepend(str(site))
    import plug_network

    plug_network.Pointwise2D(*sizes.values()).save_pretrained(model / "unet")
    outcome = ldm(*sample, tmp_path / "out", "--guidance-scale", 3)
    assert outcome.code == 0 and len(list((tmp_path / "out").glob("0*.png"))) == 2, outcome.err
    refused([*sample, tmp_path / "pag", "--guidance", "pag(3)"], "a Pointwise2D has no layers to perturb")
    del _backbones["Pointwise2D"]
