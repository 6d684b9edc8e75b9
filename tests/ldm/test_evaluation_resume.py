"""Evaluations and comparisons that were stopped go on with the next batch, and end in the same figures."""

import os
import signal
import time

import pytest
import torch

from ldm.comparison import ComparisonConfig
from ldm.comparison.compare import compare
from ldm.data.shapes import ShapesData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluate import evaluate_model
from ldm.evaluation.evaluators import prepare_evaluators
from ldm.evaluation.features import feature_cache
from ldm.evaluation.sample_stats import StatsStore, remove_abandoned
from ldm.runtime.files import cache_folder
from ldm.runtime.locks import FolderLock

CONFIG = EvaluationConfig(
    metrics=("fid",), num_images=40, num_reference=60, batch_size=8, extractor="trained", bootstrap=2
)


@pytest.fixture
def data():
    return ShapesData("validation", 32, size=(1, 120))


@pytest.fixture
def pipeline(fake_pipeline, data):
    """`pipeline(stop)`: draws until batch number `stop`; `drawn` are the first samples of its batches."""

    class Stopping(fake_pipeline):
        def __init__(self, stop=None):
            super().__init__(data)
            self.stop, self.drawn = stop, []

        def sample_batch(self, requests, plan, seed, first_index, position, on_step=None):
            if len(self.drawn) == self.stop:
                raise KeyboardInterrupt
            self.drawn.append(first_index + position)
            return super().sample_batch(requests, plan, seed, first_index, position, on_step)

    return Stopping


@pytest.mark.usefixtures("quick_networks")
def test_an_evaluation_draws_the_batches_that_are_missing(tmp_path, data, pipeline):
    evaluators = prepare_evaluators(data, CONFIG)
    store = StatsStore(tmp_path / "store")
    whole = evaluate_model(pipeline(), data, config=CONFIG, evaluators=evaluators)
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(pipeline(2), data, config=CONFIG, evaluators=evaluators, store=store)
    assert store.count() == 16
    next((tmp_path / "store").glob("batch-*8.safetensors")).write_bytes(b"damaged")
    rest = pipeline()
    result = evaluate_model(rest, data, config=CONFIG, evaluators=evaluators, store=store)
    assert rest.drawn == [8, 16, 24, 32]
    assert (result.figures, result.evaluations_per_image) == (whole.figures, whole.evaluations_per_image)


@pytest.mark.usefixtures("quick_networks")
def test_a_run_of_a_comparison_draws_the_batches_that_are_missing(tmp_path, data, pipeline):
    evaluators, config = prepare_evaluators(data, CONFIG), ComparisonConfig(("none", "cfg"), (3.0,), rows=3)

    def run(model, folder):
        return compare(model, data, config, output_dir=tmp_path / folder, evaluation=CONFIG, evaluators=evaluators)

    whole = run(pipeline(), "whole")
    with pytest.raises(KeyboardInterrupt, match="stopped; the same command goes on from there"):
        run(pipeline(7), "parts")
    rest = pipeline()
    assert [run.result.figures for run in run(rest, "parts")] == [run.result.figures for run in whole]
    assert rest.drawn == [16, 24, 32], "the first run was done, two batches of the second"
    names = {path.name: path.read_bytes() for path in (tmp_path / "parts" / "cells").iterdir() if path.suffix == ".png"}
    assert names == {
        path.name: path.read_bytes() for path in (tmp_path / "whole" / "cells").iterdir() if path.suffix == ".png"
    }
    assert not list((tmp_path / "parts").rglob("*.parts"))


def test_features_of_real_images_go_on(data, monkeypatch):
    class Means:
        name, dim, preprocessing, device = f"means {time.time()}", 3, "none", torch.device("cpu")

        def __init__(self, stop=None):
            self.stop, self.calls = stop, 0

        def __call__(self, images):
            if self.calls == self.stop:
                raise KeyboardInterrupt
            self.calls += 1
            return images.mean((2, 3))

    def features(extractor):
        return feature_cache.features_of(extractor, data, range(20), batch_size=8)

    with pytest.raises(KeyboardInterrupt):
        features(Means(2))
    rest = Means()
    found = features(rest)
    assert rest.calls == 1 and torch.equal(found, torch.stack([data[i].image.mean((1, 2)) for i in range(20)]))
    assert features(Means(0)).equal(found) and not list((cache_folder() / "features").glob("*.parts"))


def test_stores_that_nobody_goes_on_with_are_removed(tmp_path):
    for name, days in (("old", 31), ("young", 29)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, time.time() - days * 24 * 3600))
    remove_abandoned(tmp_path)
    assert os.listdir(tmp_path) == ["young"]


@pytest.mark.usefixtures("quick_networks")
def test_the_command_keeps_what_is_finished_until_its_figures_are_written(models, ldm, tmp_path, monkeypatch):
    from ldm.sampling.pipeline import Pipeline

    flags = ["--num-images", 12, "--batch-size", 4, "--num-inference-steps", 2, "--extractor", "trained"]
    command = ["evaluate", models.text, *flags, "--device", "cpu", "--output", tmp_path / "figures.json"]
    real, calls, stores = Pipeline.sample_batch, [], cache_folder() / "evaluations"

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(Pipeline, "sample_batch", stopped)
    outcome = ldm(*command)
    assert outcome.code == 143 and not (tmp_path / "figures.json").exists()
    assert outcome.err.endswith("ldm: stopped after 8 of 12 samples; the same command goes on from there\n")
    (store,) = stores.iterdir()
    with FolderLock(store, work="testing"):
        assert "another process is making the same evaluation" in ldm(*command).err
    calls.clear()
    assert ldm(*command).code == 0 and len(calls) == 1 and (tmp_path / "figures.json").exists()
    assert not list(stores.iterdir())
