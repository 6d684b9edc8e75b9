"""Evaluation in training: it leaves the training alone, nothing is measured twice, and the best model stays."""

import json
import os
import shutil
import signal

import pytest
from safetensors.torch import load_file

from ldm.evaluation.periodic import PeriodicEvaluator
from ldm.sampling.pipeline import Pipeline

STEPS = 6
LOOKS = ["--eval-every", 2, "--eval-num-images", 12, "--eval-num-inference-steps", 2, "--checkpointing-steps", 3]
KINDS = {
    "text": ["--eval-guidance-scale", 2],
    "classes in pixels": ["--text-encoder", "None", "--autoencoder", "identity", "--ema-decay", 0],
    "unconditional": ["--text-encoder", "None", "--class-conditional", "False", "--eval-metrics", "recall", "fid"],
}


@pytest.fixture
def command(models, quick_networks):
    def build(folder, *flags):
        found = models.command("diffusion", folder, *flags, steps=STEPS)
        if "identity" in flags:
            place = found.index("--latents")
            del found[place : place + 2]
        return found

    return build


def entries(folder, what):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[what] for line in lines if what in line}


def bits(folder):
    last = folder / f"checkpoint-{STEPS}"
    return {
        f"{path.name}/{name}": value.numpy().tobytes()
        for path in last.glob("*.safetensors")
        for name, value in load_file(path).items()
    }


def best(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "best").rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_leaves_the_training_alone(kind, command, ldm, tmp_path):
    seen, blind = tmp_path / "seen", tmp_path / "blind"
    found = ldm(*command(seen, *KINDS[kind], *LOOKS))
    assert found.code == 0, found.err
    assert ldm(*command(blind, *KINDS[kind])).code == 0
    assert bits(seen) == bits(blind)
    assert entries(seen, "loss") == entries(blind, "loss")
    assert not (blind / "best").exists() and not (blind / "evaluations").exists()

    figures = entries(seen, "evaluation")
    assert list(figures) == [2, 4, 6]
    facts = json.loads((seen / "best" / "best.json").read_text())
    chosen = "recall" if kind == "unconditional" else "FD"
    assert facts["measure"].startswith(f"{chosen}[trained-cnn:shapes:")
    values = {step: entry[facts["measure"]] for step, entry in figures.items()}
    ahead = max(values.values()) if chosen == "recall" else min(values.values())
    assert (
        facts["value"] == ahead == values[facts["step"]] and facts["step"] == list(values.values()).index(ahead) * 2 + 2
    )
    stored = json.loads((seen / "evaluations" / "step-000004.json").read_text())
    assert stored["result"]["manifest"]["num_images"] == 12 and stored["step"] == 4
    assert {each["name"]: each["value"] for each in stored["result"]["figures"]} == figures[4]
    assert f"{facts['measure']}: {values[6]:.4g}" in found.out
    Pipeline.load(seen / "best")


def test_the_figures_are_those_of_the_published_model(command, ldm, tmp_path, models):
    """`ldm evaluate` of the folder that the run left says the same as its last evaluation."""
    run, out = tmp_path / "run", tmp_path / "figures.json"
    assert ldm(*command(run, *LOOKS)).code == 0
    flags = ["--data", "shapes", "--image-size", 16, "--shapes-train", 64, "--shapes-validation", 32, "--device", "cpu"]
    sampling = ["--metrics", "fid", "kid", "--num-images", 12, "--num-inference-steps", 2]
    sampling += ["--bootstrap", 0, "--output", out]
    found = ldm("evaluate", run, *flags, *sampling)
    assert found.code == 0, found.err
    told = {each["name"]: each["value"] for each in json.loads(out.read_text())["figures"]}
    assert told == pytest.approx(entries(run, "evaluation")[STEPS], rel=1e-5)  # of a difference of sums


def test_nothing_is_measured_twice(command, ldm, tmp_path, monkeypatch):
    run, calls, measure = tmp_path / "run", [], PeriodicEvaluator.__call__
    monkeypatch.setattr(PeriodicEvaluator, "__call__", lambda *given: (calls.append(1), measure(*given))[1])
    assert ldm(*command(run, *LOOKS)).code == 0
    expected, kept = entries(run, "evaluation"), best(run)
    assert len(calls) == 3 and ldm(*command(run, *LOOKS)).code == 0 and len(calls) == 3, "a run that is whole"

    shutil.rmtree(run / "checkpoint-6")  # as if killed before it was saved
    assert ldm(*command(run, *LOOKS)).code == 0
    assert len(calls) == 3 and entries(run, "evaluation") == expected and best(run) == kept

    shutil.rmtree(run / "checkpoint-6")
    (run / "evaluations" / "step-000006.json").unlink()  # killed before it was measured
    other = json.loads((run / "evaluations" / "step-000004.json").read_text())
    other["weights"] = "those of another run"
    (run / "evaluations" / "step-000004.json").write_text(json.dumps(other))
    assert ldm(*command(run, *LOOKS)).code == 0
    assert len(calls) == 5 and entries(run, "evaluation") == expected and best(run) == kept


def test_a_signal_ends_an_evaluation_and_the_next_start_makes_it(command, ldm, tmp_path, monkeypatch):
    run, whole, measure = tmp_path / "run", tmp_path / "whole", PeriodicEvaluator.__call__

    def interrupted(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return measure(*given)

    with monkeypatch.context() as patch:
        patch.setattr(PeriodicEvaluator, "__call__", interrupted)
        found = ldm(*command(run, *LOOKS))
    assert found.code == 128 + signal.SIGTERM and "stopped at step 2" in found.err
    assert entries(run, "evaluation") == {} and [each.name for each in run.glob("checkpoint-*")] == ["checkpoint-2"]
    for folder in (run, whole):
        assert ldm(*command(folder, *LOOKS)).code == 0
    assert entries(run, "evaluation") == entries(whole, "evaluation") and best(run) == best(whole)
    assert bits(run) == bits(whole)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--eval-metrics", "fidd"], ["--eval-metrics", "fidd", "did you mean"]),
        (["--eval-metrics", "fid_infinity"], ["--eval-metrics fid_infinity", "needs 20 images"]),
        (["--eval-best-by", "recall"], ["--eval-best-by recall", "not one of --eval-metrics"]),
        (["--eval-num-inference-steps", 5000], ["--eval-num-inference-steps", "5000"]),
        (["--eval-sampler", "ddin"], ["--eval-sampler ddin"]),
        (["--eval-extractor", "inception"], ["--eval-extractor inception", "--eval-inception-weights"]),
        (["--eval-guidance-scale", 3, "--condition-dropout", 0], ["--eval-guidance-scale 3"]),
        (["--eval-every", -1], ["--eval-every", "-1"]),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_training(flags, words, models, refused, tmp_path):
    refused(models.command("diffusion", tmp_path / "run", *LOOKS, *flags), *words)
