"""TensorBoard and Weights & Biases get what metrics.jsonl has, each step once, also after a kill."""

import importlib.util
import json
import shutil
import sys

import pytest

from ldm.training.tracking import Trackers, check_trackers

TOLD = ["--report-to", "tensorboard", "--checkpointing-steps", 4, "--validation-steps", 4, "--preview-images", 2]


def logged(folder):
    """{name: {step: value}} of metrics.jsonl, as a tracker should have it."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        step = entry.pop("step")
        what, values = ("validation", entry["validation"]) if "validation" in entry else ("train", entry)
        for name, value in values.items():
            if isinstance(value, float):
                found.setdefault(f"{what}/{name}", {})[step] = value
    return found


def test_tensorboard_has_each_step_once(models, ldm, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    assert ldm(*models.command("diffusion", run, *TOLD, steps=10)).code == 0
    shutil.rmtree(run / "checkpoint-10")  # as if killed after step 10 was told and before it was saved
    before = (run / "metrics.jsonl").read_text()
    assert ldm(*models.command("diffusion", run, *TOLD, steps=10)).code == 0
    assert len(list((run / "logs").glob("events.*"))) == 2 and len(before.splitlines()) == 13
    events = EventAccumulator(str(run / "logs"), size_guidance={"scalars": 0, "images": 0}).Reload()
    for name, values in logged(run).items():
        told = [(event.step, event.value) for event in events.Scalars(name)]
        assert told == [(step, pytest.approx(value, rel=1e-6)) for step, value in values.items()], name
    assert [event.step for event in events.Images("samples")] == [4, 8, 10]
    assert len(events.Scalars("validation/validation_loss_by_noise_quarter/1")) == 3


WANDB = """
import json
class Error(Exception): pass
class errors: Error = Error
class Image:
    def __init__(self, pixels): self.shape = list(pixels.shape)
class config:
    @staticmethod
    def update(values, allow_val_change): tell("config", values)
def tell(what, *values):
    with open(place, "a") as file: file.write(json.dumps([what, *values], default=lambda each: each.shape) + "\\n")
class Run:
    def log(self, values, step): tell("log", step, values)
    def finish(self): tell("finish")
def init(**settings):
    global place
    place = settings["dir"] + "/told.jsonl"
    tell("init", settings)
    return Run()
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A stand-in for the package that writes down what it is asked."""
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(WANDB)
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    yield
    sys.modules.pop("wandb", None)


@pytest.mark.usefixtures("wandb")
def test_weights_and_biases_goes_on_with_the_same_run(models, ldm, tmp_path):
    run = tmp_path / "run"
    flags = [*TOLD[2:], "--report-to", "wandb", "--tracker-project-name", "mine"]
    assert ldm(*models.command("diffusion", run, *flags, steps=10)).code == 0
    shutil.rmtree(run / "checkpoint-10")
    assert ldm(*models.command("diffusion", run, *flags, steps=10)).code == 0
    told = [json.loads(line) for line in (run / "told.jsonl").read_text().splitlines()]
    starts = [entry[1] for entry in told if entry[0] == "init"]
    assert len(starts) == 2 and starts[0] == starts[1]
    assert starts[0]["project"] == "mine" and starts[0]["name"] == "run" and starts[0]["resume"] == "allow"
    assert starts[0]["id"] == json.loads((run / "wandb.json").read_text())["id"]
    steps = [entry[1] for entry in told if entry[0] == "log"]
    assert steps == sorted(steps), "Weights & Biases drops what comes after a later step"
    assert [step for _, step, values in (entry for entry in told if entry[0] == "log") if "train/loss" in values] == [
        *range(1, 11), 10,
    ]  # fmt: skip
    assert {"log", "finish", "config"} <= {entry[0] for entry in told}
    (first, *_) = [entry[2]["samples"] for entry in told if entry[0] == "log" and "samples" in entry[2]]
    assert first == [[16, 34, 3]]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["tensorbord"], ["--report-to", "tensorbord", "did you mean", "tensorboard"]),
        (["none", "wandb"], ["--report-to none", "alone"]),
        (["wandb"], ["--report-to wandb: not installed", "pip install 'guided-latents[wandb]'"]),
        (["tensorboard"], ["--report-to tensorboard: not installed", "pip install 'guided-latents[tensorboard]'"]),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_first(names, words, models, refused, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name in ("wandb", "tensorboard") else found(name, *more),
    )
    flags = ["--report-to", *names, "--data", tmp_path / "no such data"]  # which would be refused next
    refused(models.command("diffusion", tmp_path / "run", *flags), *words)


def test_no_tracker_is_no_work(tmp_path):
    assert check_trackers(["none"]) == check_trackers([]) == ()
    trackers = Trackers(["none"], "x", tmp_path, {}, 0, 0)
    trackers.log(1, "train", {"loss": 1.0})
    trackers.close()
    assert not list(tmp_path.iterdir())
