"""A whole grid from a YAML file, and successive halving on it: who stays, what is drawn, what is said."""

import json

import pytest

from ldm.cli.compare import CompareRun
from ldm.cli.parsing import parse
from ldm.comparison import ComparisonConfig, compare, verdict_of
from ldm.comparison.halving import round_sizes, staying
from ldm.comparison.records import Cell, Comparison
from ldm.data.shapes import ShapesData
from ldm.evaluation import EvaluationConfig
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


def test_a_file_stands_for_the_flags_and_flags_go_before_it():
    given = parse(CompareRun, ["model", "--config", "quickstart/compare"], "compare")
    assert given == parse(CompareRun, FLAGS, "compare")
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


def cell(label, value, scatter, cost=50.0):
    figure = MetricValue("fid", "FD[toy]", value, halves=tuple(value + each for each in scatter))
    return Cell(label, label, None, None, "ddim", 25, None, EvaluationResult((figure,), {}, cost, cost / 100))


SHARED = [0.3, -0.2, 0.1, -0.4, 0.2] * 8


def test_a_cell_that_is_not_told_from_the_best_stays():
    wild = [20 * each for each in SHARED]
    cells = [cell(name, value, SHARED) for name, value in (("a", 4.0), ("b", 5.0), ("c", 6.0), ("d", 7.0), ("e", 8.0))]
    assert staying(cells, ComparisonConfig()) == ("a", "b", "c"), "three are half of five"
    assert staying([*cells, cell("open", 9.0, wild)], ComparisonConfig()) == ("a", "b", "c", "open")
    alike = [cell(name, 4 + place / 100, wild[place:] + wild[:place]) for place, name in enumerate("abcd")]
    assert staying(alike, ComparisonConfig()) == ("a", "b", "c", "d")
    assert staying([cell(name, place, ()) for place, name in enumerate("abcd")], ComparisonConfig()) == ("a", "b")


def test_a_cell_beyond_the_budget_leaves():
    cells = [cell("dear", 1.0, SHARED, 100), cell("a", 4.0, SHARED), cell("b", 9.0, SHARED)]
    assert staying(cells, ComparisonConfig(budget_evaluations=60)) == ("a",)
    assert staying(cells, ComparisonConfig(budget_evaluations=10)) == ("dear", "a"), "none is within: none has to be"


@pytest.fixture(scope="module")
def data():
    return ShapesData("validation", 32, size=(1, 120))


def test_rounds_spend_samples_where_they_decide(tmp_path, data, fake_pipeline, shapes_evaluators):
    few = EvaluationConfig(metrics=("fid",), num_images=80, num_reference=60, batch_size=10, bootstrap=40)
    grid = ComparisonConfig(guidance_scales=(0.0, 0.2, 3.0, 200.0), classifier_scales=(4.0,), rows=3)
    given = {"evaluation": few, "evaluators": shapes_evaluators}
    plain = compare(fake_pipeline(data), data, grid, output_dir=tmp_path / "plain", **given)
    halved = ComparisonConfig(**{**vars(grid), "rounds": 3})
    pipeline = fake_pipeline(data)
    found = compare(pipeline, data, halved, output_dir=tmp_path / "halved", **given)
    assert [each.num_images for each in found.rounds] == [20, 40]
    assert len(found.everyone) == len(plain.cells) > len(found.rounds[1].cells) > len(found) >= 1
    for before, after in zip(found.rounds, [found.rounds[1].cells, found.cells], strict=True):
        assert [cell.label for cell in before.cells if cell.label not in before.left] == [cell.label for cell in after]
    for each in (*found.rounds, found):
        sizes = {cell.result.manifest["num_images"] for cell in (each.cells if each is not found else found)}
        assert len(sizes) == 1, "only equal numbers stand side by side"
    drawn = sum(len(requests) for requests, _, _ in pipeline.calls)
    stayed = 20 * len(found.everyone) + 20 * len(found.rounds[1].cells) + 40 * len(found)
    assert drawn == stayed < 80 * len(plain.cells), "no sample twice"
    for each in found:
        assert each.result.figures == plain[each.label].result.figures, "the figures of a comparison without rounds"
    assert verdict_of(found, halved).best.label == verdict_of(plain, grid).best.label
    page, text = (
        (tmp_path / "halved" / "report.html").read_text(),
        json.loads((tmp_path / "halved" / "comparison.json").read_text()),
    )
    assert "Round 1: 20 samples a cell" in page and f"left of {len(found.everyone)}" in text["verdict"]
    read = Comparison.from_json(text)
    assert (read.cells, read.rounds) == (found.cells, found.rounds)
    kept = {path.name for path in (tmp_path / "halved" / "cells").glob("*.safetensors")}
    assert len(kept) == len(found.everyone) - len(found), "what was seen of a cell is kept until it is done"
    idle = fake_pipeline(data)
    assert compare(idle, data, halved, output_dir=tmp_path / "halved", **given) == found and not idle.calls
    with pytest.raises(UserError, match="another rounds"):
        compare(idle, data, grid, output_dir=tmp_path / "halved", **given)
    assert (tmp_path / "halved" / "quality-cost.png").read_bytes().startswith(b"\x89PNG")


def test_the_bar_tells_what_is_left_of_the_whole(monkeypatch, caplog):
    now = iter([0.0, 4.0, 10.0, 12.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with caplog.at_level("INFO", "ldm"), progress.Whole(every=10.0) as whole:
        whole.total, whole.label = 100.0, "cfg 3 (1 of 4)"
        for _ in range(3):
            whole.update(10)
        whole.label = "cfg 7.5 (2 of 4)"
        whole.update(20)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["cfg 3 (1 of 4): 20 % of all, 40 s left", "cfg 7.5 (2 of 4): 50 % of all, 30 s left"]
