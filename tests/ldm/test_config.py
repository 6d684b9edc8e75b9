"""Settings: files and flags fill dataclasses, what was resolved is written and reads back, and files run nothing."""

import dataclasses
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import pytest

from ldm.cli.parsing import parse
from ldm.runtime.errors import UserError
from ldm.runtime.settings import find_config, from_mapping, read_settings, to_yaml
from ldm.sampling.config import Request, SamplingConfig
from ldm.training.tasks.settings import AutoencoderRun, ClassifierRun, DiffusionRun


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    widths: tuple[int, ...] = (1, 2)
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    """For tests."""

    inner: Inner = field(default_factory=Inner)
    max_steps: int = 10
    name: str | None = None
    flag: bool = False


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


def test_flags_win_over_the_file_and_the_file_over_the_base(file):
    path = file("inner: {rate: 0.5, widths: [4, 8, 16]}\nmax_steps: 20\n")
    assert parse(Outer, [], "x") == Outer()
    assert parse(Outer, ["--config", str(path)], "x") == Outer(Inner(0.5, (4, 8, 16)), 20)
    settings = parse(Outer, ["--rate", "2", f"--config={path}", "--widths", "3", "--flag"], "x")
    assert settings == Outer(Inner(2.0, (3,)), 20, None, True)
    base = Outer(Inner(kind="b"), 5, "base")
    assert parse(Outer, ["--config", str(path), "--max_steps", "7"], "x", base) == Outer(
        Inner(0.5, (4, 8, 16), "b"), 7, "base"
    )


@pytest.mark.parametrize("schema", [AutoencoderRun, DiffusionRun, ClassifierRun])
def test_defaults_written_read_back_equal(schema, file):
    assert read_settings(schema, file(to_yaml(schema()))) == schema()


@pytest.mark.parametrize(
    ("schema", "run"), [(AutoencoderRun, "autoencoder"), (DiffusionRun, "text"), (ClassifierRun, "classifier")]
)
def test_the_settings_of_a_run_repeat_it(schema, run, models, ldm, file):
    folder = getattr(models, run)
    settings = read_settings(schema, folder / "config.yaml")
    assert settings.training.train_batch_size == 16 and settings.dataset.image_size == 16
    assert settings.training.output_dir == str(folder)
    assert read_settings(schema, file(to_yaml(settings))) == settings
    kind = {"text": "diffusion"}.get(run, run)
    found = ldm("train", kind, "--config", folder / "config.yaml")
    assert found.code == 0, "the same run, finished already: " + found.err
    assert not list(folder.glob("checkpoint-61*"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inner: {rat: 1}", "unknown key 'inner.rat'; known: kind, rate, widths; did you mean \"rate\"?"),
        ("iner: {}", "unknown key 'iner'; known: flag, inner, max_steps, name; did you mean \"inner\"?"),
        ("inner: {rate: fast}", "inner.rate: .*'fast'"),
        ("inner: {kind: c}", "inner.kind: .*'c'"),
        ("max_steps: 1.5", "max_steps: .*1.5"),
        ("max_steps: null", "max_steps"),
        ("flag: maybe", "flag: .*maybe"),
        ("inner: null", "inner"),
        ("name: ${oc.env:HOME}", "interpolation"),
        ("name: !!python/name:os.system", "line 1: not valid YAML"),
        ("inner:\n  rate: [", "line 3: not valid YAML"),
        ("- 1", "settings.yaml: "),
        ("x: &a [1]\nname: *a", "aliases"),
    ],
)
def test_what_a_file_may_not_say(file, text, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")) as caught:
        read_settings(Outer, file(text))
    assert "settings.yaml" in str(caught.value), "says where"


def test_a_small_file_cannot_stand_for_a_large_one(file):
    names = "abcdefghi"
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise(names)]
    with pytest.raises(UserError, match="aliases"):
        read_settings(Outer, file("\n".join(lines)))
    with pytest.raises(UserError, match=r"not valid YAML|nested"):
        read_settings(Outer, file("name: " + "[" * 1000 + "]" * 1000))
    with pytest.raises(UserError, match="larger than 131072 bytes"):
        read_settings(Outer, file("#" * (2**20 + 1)))


def test_names_and_files(tmp_path, monkeypatch, file):
    assert find_config("cifar10/diffusion").name == "diffusion.yaml"
    assert find_config(str(file("max_steps: 1"))).name == "settings.yaml"
    for name in ("cifar10/difusion", "../cifar10/diffusion", "", "."):
        with pytest.raises(UserError, match="neither a file nor a shipped name"):
            find_config(name)


def test_untrusted_values_are_taken_literally_or_not_at_all():
    given = SamplingConfig(guidance_interval=(0.5, 3.0), guidance=("cfg(2)",), guidance_scale=2)
    values = dataclasses.asdict(given)
    assert from_mapping(SamplingConfig, {**values, "guidance_interval": [0.5, 3], "guidance": ["cfg(2)"]}) == given
    assert from_mapping(Request, {"prompt": "${oc.env:HOME}"}).prompt == "${oc.env:HOME}"
    for bad in (
        {"guidance_interval": [0.5]},
        {"guidance_interval": ["0.5", 3]},
        {"guidance": ["cfg(2)", 7]},
        {"guidance": "cfg(2)"},
        {"num_inference_steps": 2.5},
        {"num_inference_steps": True},
        {"guidance_scale": "2"},
        {"spacing": "even"},
        {"unknown": 1},
        [],
        None,
    ):
        with pytest.raises(UserError):
            from_mapping(SamplingConfig, bad)
