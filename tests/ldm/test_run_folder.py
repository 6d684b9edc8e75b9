"""What a run folder holds, goes on with and removes: the run's own files, and nothing of others."""

import json
import logging
import shutil

import pytest
import torch

from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json
from ldm.sampling.model_manifest import MANIFEST, read_manifest
from ldm.sampling.publication import publication
from ldm.training.checkpoint import checkpoints, save_checkpoint
from ldm.training.evaluations import BEST, forget_damaged_best, keep_best
from ldm.training.published import outdated
from ldm.training.run_folder import RunFolder

KINDS = ("autoencoder", "diffusion", "classifier", "prior", "gan")


def checkpoint(run, step, limit=99):
    return save_checkpoint(run, step, {"model": {"x": torch.ones(1)}, "optimizer": {}}, {}, limit)


def a_run(path, kind="autoencoder"):
    RunFolder.claim(path, kind, "", {}).close()
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_steps_than_were_made_are_refused_in_one_line(kind, refused, tmp_path):
    run = a_run(tmp_path / "run", kind)
    checkpoint(run, 12)
    places = [] if kind in ("autoencoder", "gan") else ["--autoencoder", "x"]
    flags = ("--data", "shapes", *places, "--output-dir", run, "--max-train-steps", 11)
    refused(("train", kind, *flags), "--max-train-steps 11", "has made 12 steps already; take 12 or more")


def test_a_damaged_checkpoint_of_a_later_step_does_not_count(ldm, models, tmp_path):
    run = tmp_path / "run"
    assert ldm(*models.command("autoencoder", run, "--checkpointing-steps", 1, steps=2)).code == 0
    (run / "checkpoint-2" / "state.json").write_text("{}")
    assert ldm(*models.command("autoencoder", run, steps=1)).code == 0


FOLDERS = ("checkpoint-99", "samples", "vae", "best", "averages")
FILES = ("metrics.jsonl", "config.yaml", "conditioning.json", MANIFEST, ".lock")


@pytest.mark.parametrize(("name", "folder"), [(n, False) for n in FOLDERS] + [(n, True) for n in FILES])
def test_a_folder_in_the_position_of_a_file_is_refused_and_the_other_way_round(name, folder, refused, tmp_path):
    run = a_run(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir() if folder else (run / name).write_text("mine")
    arguments = ("train", "autoencoder", "--data", "shapes", "--output-dir", run)
    refused(arguments, f"{name} in it is a {'folder' if folder else 'file'}", "move it elsewhere")


def test_only_the_files_of_a_checkpoint_are_removed(tmp_path, caplog):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "notes.txt").write_text("mine")
    checkpoint(tmp_path, 1)
    (tmp_path / "checkpoint-1" / "more").mkdir()
    (tmp_path / "checkpoint-1" / "more" / "notes.txt").write_text("mine too")
    with caplog.at_level(logging.WARNING, "ldm"):
        for step in (2, 3, 4):
            checkpoint(tmp_path, step, limit=1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-1.others-1", "checkpoint-3.others-1", "checkpoint-4"]
    assert (tmp_path / "checkpoint-3.others-1" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "checkpoint-1.others-1" / "more" / "notes.txt").read_text() == "mine too"
    assert caplog.text.count("did not write (notes.txt)") == 1 and caplog.text.count("did not write (more)") == 1
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]


def test_leftovers_of_others_stay(tmp_path):
    run = a_run(tmp_path / "run")
    (run / ".notes.tmp-mine").write_text("mine")
    a_run(run)
    assert (run / ".notes.tmp-mine").exists()


def published(run, step):
    with publication(run, step=step) as folder:
        atomic_write_json(folder / "unet" / "config.json", {"step": step})
    return run


REASONS = {
    "whole": (lambda run: None, 5, ""),
    "older": (lambda run: None, 6, "it was of step 5"),
    "newer": (lambda run: None, 4, ""),
    "empty": (lambda run: (run / "unet" / "config.json").write_text(""), 5, "0 bytes instead of"),
    "missing": (lambda run: shutil.rmtree(run / "unet"), 5, "unet/config.json is missing"),
    "edited": (lambda run: (run / "unet" / "config.json").write_text('{\n  "step": 6\n}\n'), 5, "differs"),
    "manifest": (lambda run: (run / MANIFEST).write_text("{"), 5, "not valid JSON"),
    "earlier version": (lambda run: (run / MANIFEST).unlink(), 5, "no manifest"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_model_that_is_not_that_of_the_checkpoint_is_published_again(name, tmp_path, caplog):
    damage, step, reason = REASONS[name]
    damage(published(tmp_path, 5))
    found = outdated(tmp_path, step)
    assert (reason in found) if reason else found == ""
    assert ("later than the checkpoint of step 4" in caplog.text) == (name == "newer")


def test_every_damaged_part_is_written_anew_when_a_finished_run_is_started_again(ldm, models, tmp_path, caplog):
    run, command = tmp_path / "run", models.command("diffusion", tmp_path / "run", steps=1)
    assert ldm(*command).code == 0
    whole = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "checkpoint" not in str(path)}
    for part in ("unet", "vae", "text_encoder"):
        next((run / part).glob("*.safetensors")).write_bytes(b"")
    (run / "conditioning.json").write_text('{"class_names": [')
    (run / "model_index.json").unlink()
    shutil.rmtree(run / "tokenizer")
    again = ldm(*command)
    assert again.code == 0 and "the model of step 1 is published again" in caplog.text
    logs = ("metrics.jsonl", "run.json", "config.yaml")
    assert {path: path.read_bytes() for path in whole if path.name not in logs} == {
        path: content for path, content in whole.items() if path.name not in logs
    }


def test_stopped_between_checkpoint_and_model_the_model_follows(ldm, models, tmp_path, monkeypatch, caplog):
    """The model is never ahead of the newest checkpoint, and comes to its step when the run goes on."""
    run, command = tmp_path / "run", models.command("autoencoder", tmp_path / "run", steps=2)
    calls = []

    def stopped(*arguments, **options):
        calls.append([path.name for path in checkpoints(run)])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return publication(*arguments, **options)

    monkeypatch.setattr("ldm.training.state.publication", stopped)
    assert ldm(*command, "--checkpointing-steps", 1).code == 130
    assert calls == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"]] and read_manifest(run).step == 1
    assert ldm(*command).code == 0 and read_manifest(run).step == 2
    assert "published again: it was of step 1" in caplog.text


@pytest.mark.parametrize("damage", ["bit", "json", "none"])
def test_a_damaged_best_model_is_replaced_by_the_next_one(damage, tmp_path, caplog):
    def publish(folder):
        (folder / "weights").write_text("abc")

    assert keep_best(tmp_path, "FID", {"FID": 1.0}, 3, publish)
    (tmp_path / BEST / "notes.txt").write_text("mine")
    if damage == "bit":
        (tmp_path / BEST / "weights").write_text("abd")
    if damage == "json":
        (tmp_path / BEST / "best.json").write_text("{")
    forget_damaged_best(tmp_path)
    assert ("is damaged" in caplog.text) == (damage != "none")
    assert keep_best(tmp_path, "FID", {"FID": 2.0}, 4, publish) == (damage != "none")
    assert json.loads((tmp_path / BEST / "best.json").read_text())["value"] == (1.0 if damage == "none" else 2.0)
    assert (tmp_path / BEST / "notes.txt").read_text() == "mine" and (tmp_path / BEST / "weights").read_text() == "abc"


def test_a_run_that_is_damaged_is_named(tmp_path):
    run = a_run(tmp_path / "run")
    (run / "run.json").write_text("[]")
    with pytest.raises(UserError, match="is not that of a run"):
        RunFolder.check(run, "autoencoder")
