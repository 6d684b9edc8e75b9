"""Another installed package brings a solver and a guidance with options of their own, by entry points alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoencoders import Autoencoder
from autoencoders.bottlenecks import registry as bottleneck_registry
from samplers import registry

ROOT = Path(__file__).resolve().parents[2]
SOLVER = """
from samplers import Step, sampler
from samplers.level import ddim_step, pairs

@sampler("mine", order=1, source="Doe 2026, eq. 1")
def mine(denoise, x, levels, *, noise=None, strength: float = 1.0):
    for i, now, next in pairs(levels):
        p = denoise(x, now)
        x = strength * ddim_step(p, next)
        yield Step(x, next, p.denoised, i)
"""
GUIDANCE = """
from dataclasses import dataclass, replace
from samplers import Guidance, guidance

@guidance("theirs", source="Doe 2026, eq. 2", evaluations=0)
@dataclass(frozen=True)
class Theirs(Guidance):
    gain: float
    offset: float = 0.0
    stage = 1

    def apply(self, prediction, raw):
        return replace(prediction, x0=self.gain * prediction.x0 + self.offset)
"""


BOTTLENECK = """
from dataclasses import dataclass
from autoencoders import Bottleneck, BottleneckConfig, BottleneckOutput, bottleneck

class Scaled(Bottleneck):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def decode(self, latents):
        return self.gain * latents

    def forward(self, features, generator):
        return BottleneckOutput(self.gain * features, {"size": features.square().mean()})

@bottleneck("mine", source="Doe 2026, eq. 3")
@dataclass(frozen=True)
class ScaledConfig(BottleneckConfig):
    gain: float = 1.0

    def build(self, config):
        return Scaled(self.gain)
"""


def install(site, package, files, samplers=(), guidances=(), bottlenecks=()):
    """What pip leaves behind: the package, and its dist-info with entry points."""
    (site / package).mkdir(parents=True)
    (site / package / "__init__.py").write_text("")
    for name, text in files.items():
        (site / package / f"{name}.py").write_text(text)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    groups = {"ldm.samplers": samplers, "ldm.guidances": guidances, "ldm.bottlenecks": bottlenecks}
    lines = [f"[{group}]\n" + "".join(f"{point}\n" for point in points) for group, points in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages, and a registry that has not looked for plug-ins yet."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name, value in (("_samplers", dict(registry._samplers)), ("_guidances", dict(registry._guidances))):
        monkeypatch.setattr(registry, name, value)
    monkeypatch.setattr(registry, "_plugged", set())
    monkeypatch.setattr(bottleneck_registry, "_bottlenecks", dict(bottleneck_registry._bottlenecks))
    monkeypatch.setattr(bottleneck_registry, "_loaded", set())
    before = set(sys.modules)
    yield tmp_path / "site"
    for name in set(sys.modules) - before:
        if name.startswith("plug"):
            del sys.modules[name]


def pixels(path):
    with Image.open(path) as image:
        return np.array(image).astype(int)


def test_a_solver_and_a_guidance_of_another_package(models, ldm, site, tmp_path):
    files = {"solver": SOLVER, "guidance": GUIDANCE}
    install(site, "plug", files, ["mine = plug.solver:mine"], ["theirs = plug.guidance:Theirs"])
    listed = {kind: ldm("list", kind).out for kind in ("samplers", "guidances")}
    assert re.search(r"^mine +1 +no +1 +strength=1.0 +Doe 2026, eq. 1$", listed["samplers"], re.MULTILINE)
    assert re.search(r"^theirs +\+0 +gain, offset=0.0 +- +Doe 2026, eq. 2$", listed["guidances"], re.MULTILINE)
    short = ["--num-inference-steps", 4, "--num-images", 2, "--device", "cpu", "--prompt", "a star"]

    def drawn(name, *flags):
        found = ldm("sample", models.text, *short, *flags, "--output-dir", tmp_path / name)
        assert found.code == 0, found.err
        return pixels(tmp_path / name / "000001.png")

    plain = drawn("plain", "--guidance-scale", 1)
    assert np.array_equal(drawn("a", "--sampler", "mine", "--guidance", "theirs(1)"), plain)
    other = drawn("b", "--sampler", "mine(strength=0.3)", "--guidance", "theirs(2, offset=0.5)")
    assert np.abs(other - plain).max() > 3
    again = ldm("sample", models.text, "--recreate", tmp_path / "b" / "000001.png", "--output-dir", tmp_path / "c")
    assert again.code == 0 and np.abs(pixels(tmp_path / "c" / "000000.png") - other).max() <= 1
    for sampler, words in {"mine(strength=-1)": "not negative", "mine(size=1)": "its options are strength"}.items():
        found = ldm("sample", models.text, *short, "--sampler", sampler, "--output-dir", tmp_path / "d")
        assert found.code == 2 and words in found.err and found.err.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (SOLVER.replace('"mine"', '"ddim"'), ["'ddim' is registered twice", "plug.solver", "samplers.solvers.ddim"]),
        ("import a_package_that_is_not_there", ["cannot be imported", "ModuleNotFoundError"]),
        ("raise RuntimeError('two\\nlines')", ["cannot be imported", "RuntimeError: two lines"]),
        ("mine = 1", ["registers no sampler named 'mine'"]),
    ],
    ids=["duplicate", "missing", "raises", "nothing"],
)
def test_a_package_that_fails_is_named_in_one_line(models, refused, site, tmp_path, file, words):
    install(site, "plug", {"solver": file}, ["mine = plug.solver:mine"])
    refused(["list", "samplers"], "plug", *words)
    refused(["sample", models.text, "--device", "cpu", "--output-dir", tmp_path / "out"], "plug", *words)


def test_a_bottleneck_of_another_package(models, ldm, refused, site, tmp_path):
    install(site, "plug", {"bottleneck": BOTTLENECK}, bottlenecks=["mine = plug.bottleneck:ScaledConfig"])
    assert re.search(r"^mine .* no +gain=1.0 +Doe 2026, eq. 3$", ldm("list", "bottlenecks").out, re.MULTILINE)
    command = models.command("autoencoder", tmp_path / "run", "--bottleneck", "mine( gain=0.5 )", steps=2)
    found = ldm(*command)
    assert found.code == 0, found.err
    vae = tmp_path / "run" / "vae"
    stored = json.loads((vae / "config.json").read_text())
    assert (stored["_class_name"], stored["bottleneck"], stored["settings"]) == ("Autoencoder", "mine", {"gain": 0.5})
    loaded = Autoencoder.from_pretrained(vae)
    assert (loaded.config.bottleneck, loaded.quantize.gain) == ("mine(gain=0.5)", 0.5)
    assert ldm(*command, "--max-train-steps", 3).code == 0, "resumed"
    for text, words in {
        "mine(size=1)": "its options are gain",
        "mine(__import__('os'))": "such as",
        "min": "mine",
    }.items():
        refused(models.command("autoencoder", tmp_path / "other", "--bottleneck", text), "bottleneck", words)
    shutil.rmtree(site)  # the package is uninstalled
    del bottleneck_registry._bottlenecks["mine"]
    bottleneck_registry._loaded.clear()
    refused(["evaluate", tmp_path / "run", "--metrics", "psnr"], "config.yaml", "bottleneck", "'mine'", "plug-in")
    with pytest.raises(ValueError, match=r"config\.json: bottleneck: .*installed plug-in, got 'mine'"):
        Autoencoder.from_pretrained(vae)


def test_two_packages_with_one_name(refused, models, site):
    install(site, "plug", {"solver": SOLVER}, ["mine = plug.solver:mine"])
    install(site, "plug2", {"solver": SOLVER}, ["mine = plug2.solver:mine"])
    refused(["list", "samplers"], "'mine' is registered twice", "plug.solver and plug2.solver")


def test_a_new_process_finds_it(tmp_path):
    install(tmp_path, "plug", {"solver": SOLVER}, ["mine = plug.solver:mine"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, "-m", "ldm", "list", "samplers"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0 and "\nmine " in found.stdout, found.stderr
