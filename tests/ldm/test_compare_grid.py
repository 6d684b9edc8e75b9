"""A whole grid from a YAML file, and successive halving on it: which runs go on, what is sampled and reported."""

import json

import pytest

from ldm.cli.compare import CompareRun
from ldm.cli.parsing import parse
from ldm.comparison import ComparisonConfig, rank_comparison
from ldm.comparison.compare import compare
from ldm.comparison.halving import round_sizes, survivors
from ldm.comparison.records import Comparison, Run
from ldm.data.shapes import ShapesData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.runtime import progress
from ldm.runtime.errors import UserError

FLAGS = [
    *(
        "model",
        "--data",
        "shapes",
        "--image-size",
        "32",
        "--shapes-train",
        "8192",
        "--methods",
        "unconditional",
        "none",
    ),
    *("cfg", "cfg(3, interval=[0.3, 5])", "cfg(7.5, interval=[0.3, 5])", "classifier", "autoguidance(2)", "cfgpp(0.8)"),
    *("apg(7.5, norm=15.0, momentum=-0.5)", "pag(1)", "cfg(3) + classifier(4)", "--guidance-scales", "1", "1.5", "2"),
    *("3", "5", "7.5", "--classifier-scales", "1", "2", "4", "8", "15", "30", "--samplers", "ddim", "dpmpp_2m"),
    *("--num-inference-steps", "20", "--perturbed-layers", "down_blocks", "mid_block", "up_blocks", "--metrics", "fid"),
    *("precision", "recall", "coverage", "diversity", "--num-images", "384", "--num-reference", "2000"),
]


def test_a_file_sets_what_flags_set_and_flags_override_it():
    settings = parse(CompareRun, ["model", "--config", "quickstart/compare"], "compare")
    assert settings == parse(CompareRun, FLAGS, "compare")
    changed = parse(CompareRun, ["model", "--config", "quickstart/compare", "--methods", "none", "--rounds", "3"], "c")
    assert changed.comparison.methods == ("none",) and changed.comparison.rounds == 3
    assert changed.comparison.samplers == ("ddim", "dpmpp_2m")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("comparison: {methods: [cfgg]}", "unknown method"),
        ("comparison: {method: [cfg]}", "methods"),
        ("comparison: {rows: 3, guidance_scales: [1, a]}", "comparison.guidance_scales: [1, 'a']: "),
        ("comparison: {samplers: [ddin]}", "ddim"),
        ("evaluation: {metrics: [fidd]}", "fid"),
        ("comparison: {rounds: 0}", "--rounds: expected 1 or more"),
    ],
)
def test_a_file_with_a_mistake_is_refused(refused, models, tmp_path, text, words):
    (tmp_path / "grid.yaml").write_text(text)
    what = ["compare", models.text, "--config", tmp_path / "grid.yaml", "--output-dir", tmp_path / "out"]
    refused(what, "grid.yaml", words)


def test_rounds_are_whole_batches_and_about_halves():
    assert round_sizes(384, 1, 64) == (384,)
    assert round_sizes(384, 3, 64) == (128, 192, 384)
    assert round_sizes(1000, 4, 50) == (150, 250, 500, 1000)
    with pytest.raises(UserError, match="`rounds` 4: 100 samples in batches of 64 cannot be halved"):
        round_sizes(100, 4, 64)


def make_run(label, value, scatter, cost=50.0):
    metric = MetricValue("fid", "FD[toy]", value, halves=tuple(value + offset for offset in scatter))
    return Run(label, label, None, None, "ddim", 25, None, EvaluationResult((metric,), {}, cost, cost / 100))


SHARED = [0.3, -0.2, 0.1, -0.4, 0.2] * 8


def test_a_run_that_is_not_distinguished_from_the_best_goes_on():
    wild = [20 * offset for offset in SHARED]
    runs = [make_run(name, value, SHARED) for name, value in zip("abcde", (4.0, 5.0, 6.0, 7.0, 8.0), strict=True)]
    assert survivors(runs, ComparisonConfig()) == ("a", "b", "c"), "three are half of five"
    assert survivors([*runs, make_run("open", 9.0, wild)], ComparisonConfig()) == ("a", "b", "c", "open")
    alike = [make_run(name, 4 + k / 100, wild[k:] + wild[:k]) for k, name in enumerate("abcd")]
    assert survivors(alike, ComparisonConfig()) == ("a", "b", "c", "d")
    assert survivors([make_run(name, k, ()) for k, name in enumerate("abcd")], ComparisonConfig()) == ("a", "b")


def test_a_run_beyond_the_budget_leaves():
    runs = [make_run("dear", 1.0, SHARED, 100), make_run("a", 4.0, SHARED), make_run("b", 9.0, SHARED)]
    assert survivors(runs, ComparisonConfig(budget_evaluations=60)) == ("a",)
    assert survivors(runs, ComparisonConfig(budget_evaluations=10)) == ("dear", "a"), (
        "none is within the budget: all compete"
    )


@pytest.fixture(scope="module")
def data():
    return ShapesData("validation", 32, size=(1, 120))


def test_rounds_spend_samples_where_they_decide(tmp_path, data, fake_pipeline, shapes_evaluators):
    few = EvaluationConfig(metrics=("fid",), num_images=80, num_reference=60, batch_size=10, bootstrap=40)
    grid = ComparisonConfig(guidance_scales=(0.0, 0.2, 3.0, 200.0), classifier_scales=(4.0,), rows=3)
    options = {"evaluation": few, "evaluators": shapes_evaluators}
    plain = compare(fake_pipeline(data), data, grid, output_dir=tmp_path / "plain", **options)
    halved = ComparisonConfig(**{**vars(grid), "rounds": 3})
    pipeline = fake_pipeline(data)
    comparison = compare(pipeline, data, halved, output_dir=tmp_path / "halved", **options)
    assert [round_.num_images for round_ in comparison.rounds] == [20, 40]
    assert len(comparison.initial_runs) == len(plain.runs) > len(comparison.rounds[1].runs) > len(comparison) >= 1
    for before, after in zip(comparison.rounds, [comparison.rounds[1].runs, comparison.runs], strict=True):
        assert [run.label for run in before.runs if run.label not in before.eliminated] == [run.label for run in after]
    for stage in (*comparison.rounds, comparison):
        sizes = {run.result.manifest["num_images"] for run in stage.runs}
        assert len(sizes) == 1, "only equal numbers stand side by side"
    drawn = sum(len(requests) for requests, _, _ in pipeline.calls)
    stayed = 20 * len(comparison.initial_runs) + 20 * len(comparison.rounds[1].runs) + 40 * len(comparison)
    assert drawn == stayed < 80 * len(plain.runs), "no sample twice"
    for run in comparison:
        assert run.result.figures == plain[run.label].result.figures, "the figures of a comparison without rounds"
    assert rank_comparison(comparison, halved).best.label == rank_comparison(plain, grid).best.label
    page, text = (
        (tmp_path / "halved" / "report.html").read_text(),
        json.loads((tmp_path / "halved" / "comparison.json").read_text()),
    )
    assert "Round 1: 20 samples a run" in page and f"left of {len(comparison.initial_runs)}" in text["verdict"]
    read = Comparison.from_json(text)
    assert (read.runs, read.rounds) == (comparison.runs, comparison.rounds)
    stored = {path.name for path in (tmp_path / "halved" / "cells").glob("*.safetensors")}
    assert len(stored) == len(comparison.initial_runs) - len(comparison), (
        "the statistics of a run are stored until it is done"
    )
    idle = fake_pipeline(data)
    assert compare(idle, data, halved, output_dir=tmp_path / "halved", **options) == comparison and not idle.calls
    with pytest.raises(UserError, match="another rounds"):
        compare(idle, data, grid, output_dir=tmp_path / "halved", **options)
    assert (tmp_path / "halved" / "quality-cost.png").read_bytes().startswith(b"\x89PNG")


def test_the_bar_estimates_the_remaining_time(monkeypatch, caplog):
    now = iter([0.0, 4.0, 10.0, 12.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with caplog.at_level("INFO", "ldm"), progress.CostProgress(every=10.0) as bar:
        bar.total, bar.label = 100.0, "cfg 3 (1 of 4)"
        for _ in range(3):
            bar.update(10)
        bar.label = "cfg 7.5 (2 of 4)"
        bar.update(20)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["cfg 3 (1 of 4): 20 % of all, 40 s left", "cfg 7.5 (2 of 4): 50 % of all, 30 s left"]
