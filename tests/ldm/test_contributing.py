"""The five files of CONTRIBUTING.md, installed as another package and used from the command line."""

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from autoencoders.bottlenecks import registry as bottlenecks
from ldm.evaluation.registry import metrics
from ldm.models import backbone
from samplers import registry as samplers

PAGE = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
REGISTRIES = [
    (samplers, "_samplers"), (samplers, "_guidances"), (bottlenecks, "_bottlenecks"), (backbone, "_backbones"),
    (metrics, "_infos"), (metrics, "_classes"),
]  # fmt: skip


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package as pip leaves it; what it registers is gone after the test."""
    for holder, name in REGISTRIES:
        monkeypatch.setattr(holder, name, dict(getattr(holder, name)))
    for holder, name in ((samplers, "_plugged"), (bottlenecks, "_loaded")):
        monkeypatch.setattr(holder, name, set())
    site = tmp_path / "site"
    (site / "mine").mkdir(parents=True)
    for name, text in {"__init__.py": "", **FILES}.items():
        (site / "mine" / name).write_text(text)
    info = site / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    groups = tomllib.loads(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(site))
    yield groups
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_each_of_the_five_is_one_short_file():
    assert set(FILES) == {"solver.py", "guidance.py", "bottleneck.py", "metric.py", "network.py"}
    assert all(len(text.splitlines()) <= 30 for text in FILES.values())


def test_a_package_of_the_five_files_works_from_the_command_line(package, models, ldm, tmp_path, quick_networks):
    def run(*arguments):
        outcome = ldm(*arguments)
        assert outcome.code == 0, outcome.err
        return outcome.out

    names = {"samplers": "halfway", "guidances": "damped", "bottlenecks": "clipped", "metrics": "mean_gap"}
    for kind, name in names.items():
        assert re.search(rf"^{name} ", run("list", kind), re.MULTILINE), kind
    few = ["--num-inference-steps", 2, "--device", "cpu"]
    sample = [*few, "--num-images", 2, "--sampler", "halfway(strength=0.5)", "--guidance", "damped(0.9)"]
    run("sample", models.text, *sample, "--prompt", "a star", "--output-dir", tmp_path / "samples")
    command = models.command("autoencoder", tmp_path / "ae", "--bottleneck", "clipped(limit=2)", steps=2)
    run(*command)
    assert json.loads((tmp_path / "ae" / "vae" / "config.json").read_text())["settings"] == {"limit": 2}
    counts = ["--num-images", 24, "--num-reference", 24, "--bootstrap", 0, "--extractor", "trained", "--no-judge"]
    figures = tmp_path / "figures.json"
    run("evaluate", models.classes, *few, *counts, "--metrics", "mean_gap", "--output", figures)
    (figure,) = json.loads(figures.read_text())["figures"]
    assert figure["metric"] == "mean_gap" and figure["value"] > 0
    model = shutil.copytree(models.classes, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    stored = json.loads((model / "unet" / "config.json").read_text())
    from mine.network import Pointwise2D

    Pointwise2D(stored["in_channels"], stored["sample_size"], stored["num_class_embeds"]).save_pretrained(
        model / "unet"
    )
    (model / "model_manifest.json").unlink()  # it is edited on purpose
    run("sample", model, *few, "--num-images", 2, "--guidance-scale", 3, "--output-dir", tmp_path / "pointwise")
