"""The ranking and the report of a comparison, on runs with invented values."""

import csv
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from ldm.comparison import Comparison, ComparisonConfig, Run, pareto_front, rank_runs
from ldm.comparison.image_grid import save_sample_row
from ldm.comparison.methods import plan_variants
from ldm.comparison.report import render, write_csv
from ldm.data.shapes import ShapesData
from ldm.evaluation.intervals import interval
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.reports.history import read_history
from ldm.runtime.errors import UserError
from ldm.runtime.images import save_grid
from ldm.runtime.memory import PeakMemory
from ldm.sampling.config import ResolvedSampling

EVIL = "<script>alert(1)</script>"


def make_run(label, value, cost, halves=(), recall=0.5, method=None, scale=None):
    halves = tuple(value + half for half in halves)
    values = (
        MetricValue("fid", "FD[toy]", value, interval=interval(value, halves), halves=halves),
        MetricValue("recall", "recall[toy]", recall, higher_is_better=True),
        MetricValue("accuracy/shape", "accuracy[shape]", 0.75, 0.01, higher_is_better=True),
    )
    result = EvaluationResult(values, {}, evaluations_per_image=cost, seconds_per_image=cost / 100)
    return Run(label, method or label, scale, None, "ddim", 25, 10**7, result)


SHARED = [0.3, -0.2, 0.1, -0.4, 0.2] * 8  # common to the half-samples of all methods
OWN = [0.02, -0.02, 0.01, -0.01] * 10
RUNS = (
    make_run("none", 9.0, 25, SHARED, recall=0.6),
    make_run("cfg 3", 4.0, 50, SHARED, recall=0.5, method="cfg", scale=3.0),
    make_run("cfg 7.5", 4.1, 50, [a + b for a, b in zip(SHARED, OWN, strict=True)], 0.3, "cfg", 7.5),
    make_run("pag", 3.99, 75, [a + 20 * b for a, b in zip(SHARED, OWN, strict=True)], recall=0.55),
)


def test_differences_are_paired():
    ranking = rank_runs(RUNS[:3])
    assert ranking.best is RUNS[1] and [other.run.label for other in ranking.others] == ["cfg 7.5", "none"]
    near = ranking.others[0]
    ends = RUNS[1].result["fid"].interval
    assert near.worse < ends[1] - ends[0], "unpaired, the two intervals overlap"
    assert not near.undecided and 0.05 < near.interval[0] < 0.1 < near.interval[1] < 0.15
    assert ranking.sentence == (
        "cfg 3 has the lowest FD[toy] of 3: 4 (95 %: 3.6 to 4.3); "
        "the next, cfg 7.5, is worse by 0.1 (95 %: 0.08 to 0.12). "
        "Decided by fid; the best by recall none (0.6); it is also the best by accuracy/shape."
    )
    ranking = rank_runs(RUNS)
    assert ranking.best is RUNS[3] and ranking.others[0].undecided
    assert "do not tell it from cfg 3, cfg 7.5." in ranking.sentence


def test_another_metric_decides():
    ranking = rank_runs(RUNS, decide_by="recall")
    assert ranking.best is RUNS[0] and "has the highest recall[toy] of 4: 0.6" in ranking.sentence
    assert "Decided by recall; the best by fid pag (3.99); it is also the best by accuracy/shape." in ranking.sentence
    alone = rank_runs(RUNS[:1], decide_by="recall")
    assert alone.sentence.endswith("0.6. Decided by recall.")


def test_a_metric_that_is_not_measured_does_not_decide(refused, models, tmp_path):
    what = ["compare", models.text, "--output-dir", tmp_path / "out", "--device", "cpu"]
    refused([*what, "--decide-by", "recal"], "--decide-by recal: is not measured", 'did you mean "recall"')
    refused([*what, "--decide-by", "accuracy/shape", "--no-judge"], "--decide-by accuracy/shape: is not measured")


def test_the_best_of_each_column_is_bold_not_a_row(page):
    cells = re.findall(r'<td class="best" data-value="([^"]*)">', page)
    best_of_all = {"3.99": 1, "0.6": 1, "0.75": 5, "25": 1, "0.25": 1, "10000000": 5}  # ties are all the best
    assert Counter(cells) == best_of_all
    assert page.count('<tr class="winner">') == 1 and '<tr class="best">' not in page


def test_peak_memory_is_unknown_on_a_cpu_where_it_would_tell_the_order_of_the_runs():
    with PeakMemory(torch.device("cpu")) as peak:
        torch.ones(2**20)
    assert peak.bytes is None
    unknown = Comparison(tuple(replace(run, peak_memory=None) for run in RUNS), {}, {})
    assert "peak MB" not in unknown.table() and "peak MB" in Comparison(RUNS, {}, {}).table()
    mixed = Comparison((RUNS[0], replace(RUNS[1], peak_memory=None)), {}, {})
    assert mixed.table().splitlines()[-1].split()[-1] == "-"


def test_budgets_bound_who_may_win():
    assert rank_runs(RUNS, budget_evaluations=50).best is RUNS[1]
    assert rank_runs(RUNS, budget_seconds=0.3).best is RUNS[0]
    assert "1 within 25 network evaluations an image" in rank_runs(RUNS, budget_evaluations=25).sentence
    none = rank_runs(RUNS, budget_evaluations=3)
    assert none.best is None and none.sentence == "None of the 4 runs stays within 3 network evaluations an image."


def test_the_front_is_what_nothing_beats_in_both():
    assert [run.label for run in pareto_front(RUNS, "fid")] == ["none", "cfg 3", "pag"]
    assert [run.label for run in pareto_front(RUNS, "fid", "recall")] == ["none", "pag"]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "action")]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def page(tmp_path):
    runs = (*RUNS, make_run(EVIL, 5.0, 50, SHARED))
    sample_rows = []
    for number in range(len(runs)):
        sample_rows.append(tmp_path / f"{number}.png")
        save_sample_row(torch.full((2, 3, 8, 8), number / 5), sample_rows[-1])
    manifest = {"num_images": 40, "num_reference": 60, "data": EVIL, "split": "validation", "rows": 2, "seed": 0}
    manifest |= {"conditions": "as drawn", "extractor": EVIL, "preprocessing": "none"}
    comparison = Comparison(runs, {"classifier": EVIL}, manifest, (EVIL,))
    return render(
        comparison, rank_runs(runs), sample_rows, conditions=[EVIL, "b"], command=f"ldm compare {EVIL}", model=EVIL
    )


def test_the_report_is_one_file_and_inert(page):
    parsed = Page(page)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == 1 and page.count(EVIL) == 0 and "alert(1)" in page
    assert parsed.links and all(link.startswith(("data:image/webp;base64,", "#")) for link in parsed.links)
    assert "url(http" not in page and "@import" not in page and "default-src 'none'" in page
    assert any(EVIL in text for text in parsed.texts), "shown as text"
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert (
        len(images) == 5 and all(image["alt"] for image in images) and sum("hidden" in image for image in images) == 1
    )
    sliders = [attributes for tag, attributes in parsed.tags if tag == "input"]
    assert len(sliders) == 1 and (sliders[0]["min"], sliders[0]["max"]) == ("0", "1")
    assert tags.count("button") == tags.count("th") == 7 and tags.count("svg") == 3
    assert all(attributes.get("aria-label") for tag, attributes in parsed.tags if tag == "svg")
    assert "cfg 3 has" not in page and "pag has the lowest FD[toy] of 5" in page


def test_the_table_as_csv():
    manifest = {"num_images": 40}
    rows = list(csv.DictReader(io.StringIO(write_csv(Comparison(RUNS, {}, manifest)))))
    assert [row["label"] for row in rows] == [run.label for run in RUNS]
    assert float(rows[1]["fid"]) == 4.0 and float(rows[1]["fid_low"]) == RUNS[1].result["fid"].interval[0]
    assert (
        rows[1]["recall_low"] == ""
        and rows[2]["guidance_scale"] == "7.5"
        and rows[0]["peak_memory_bytes"] == "10000000"
    )


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r\n@"])
def test_no_text_in_a_csv_is_a_formula(start):
    table = Comparison((make_run(f"{start}HYPERLINK(0)", -4.0, 50),), {}, {})
    (row,) = csv.DictReader(io.StringIO(write_csv(table), newline=""))
    assert row["label"] == row["method"] == f"'{' ' * (len(start) - 1)}{start[-1]}HYPERLINK(0)"
    assert float(row["fid"]) == -4, "a number is one"


def test_runs_survive_json():
    for run in RUNS:
        assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run


def test_a_grid_of_samplers_and_steps(fake_pipeline):
    data = ShapesData("validation", 32, size=(1, 12))
    grid = ComparisonConfig(("none", "cfg"), (3.0, 7.5), samplers=("ddim", "dpmpp_2m"), steps=(10, 25))
    variants, _ = plan_variants(grid, fake_pipeline(data), data, ResolvedSampling(num_inference_steps=25))
    assert len(variants) == 3 * 4
    assert len({variant.slug for variant in variants}) == len({variant.label for variant in variants}) == 12
    assert variants[0].label == "none | ddim 10" and variants[-1].label == "cfg 7.5 | dpmpp_2m 25"
    assert (variants[-1].sampling.sampler, variants[-1].sampling.num_inference_steps) == ("dpmpp_2m", 25)
    single = ComparisonConfig(("none",), samplers=("dpmpp_2m",))
    (variant,), _ = plan_variants(single, fake_pipeline(data), data, ResolvedSampling())
    assert variant.label == "none" and variant.sampling.sampler == "dpmpp_2m"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samplers": ("ddin",)}, "`samplers`.*ddin.*ddim"),
        ({"steps": (0,)}, "`steps`: expected 1 or more"),
        ({"budget_evaluations": 0.0}, "`budget_evaluations`: expected above 0"),
    ],
)
def test_grids_are_refused_in_one_line(settings, words):
    with pytest.raises(UserError, match=words):
        ComparisonConfig(**settings)


@pytest.fixture
def training(tmp_path):
    """A run folder as a training leaves it, with hostile settings."""
    root = tmp_path / "run"
    (root / "samples").mkdir(parents=True)
    content = {"kind": "classifier", "facts": {}, "commands": [f"ldm train classifier --data {EVIL}"]}
    (root / "run.json").write_text(json.dumps(content))
    (root / "config.yaml").write_text(f"dataset: {EVIL}\n")
    steps = [{"step": step, "loss": 2.0 / step, "learning_rate": 1e-3, "odd": None} for step in range(1, 30)]
    noise = [{"t": t, "noise_ratio": 0.1, "accuracy": 1 - t / 1000} for t in (0.0, 500.0)]
    held_out = [{"step": step, "validation": {"accuracy": step / 40, "accuracy_by_noise": noise}} for step in (10, 29)]
    evaluations = [{"step": step, "evaluation": {"FD[x]": value}} for step, value in ((10, 3.0), (29, 4.0))]
    (root / "metrics.jsonl").write_text(
        "".join(json.dumps(entry) + "\n" for entry in [*steps, *held_out, *evaluations])
    )
    (root / "best").mkdir()
    (root / "best" / "best.json").write_text(json.dumps({"measure": "FD[x]", "value": 3.0, "step": 10}))
    for step in (10, 29):
        save_grid(torch.full((4, 3, 8, 8), step / 40), root / "samples" / f"step-{step:06d}.png")
    return root


def test_the_report_of_a_training(training, ldm):
    outcome = ldm("report", training)
    assert outcome.code == 0, outcome.err
    text = (training / "report.html").read_text()
    page = Page(text)
    assert text.count(EVIL) == 0 and any(EVIL in text for text in page.texts)
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in page.links)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("svg") == 5 and tags.count("img") == 2 and tags.count("input") == 1
    assert any("Step 29: loss 0.06897. On held-out data at step 29: accuracy 0.725. " in text for text in page.texts)
    assert any("Best by FD[x]: 3 at step 10." in text for text in page.texts)
    assert sum(EVIL in text and "ldm train" in text for text in page.texts) == 1, "the command"
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert "loss against step. loss: 2 at 1, 0.06897 at 29." in labels
    assert "FD[x] (samples) against step. FD[x]: 3 at 10, 4 at 29. best: step 10." in labels
    assert (
        sum(label.startswith("accuracy against time t. step 10: 1 at 0, 0.5 at 500; step 29") for label in labels) == 1
    )
    assert [dict(attributes) for tag, attributes in page.tags if tag == "tr" and "class" in dict(attributes)] == [
        {"class": "best"}
    ]
    history = read_history(training)
    assert len(history.steps) == 29 and [entry["step"] for entry in history.validations] == [10, 29]


def test_a_killed_training_has_a_report(training, ldm):
    """An incomplete line and hostile lines are skipped."""
    whole = read_history(training)
    with open(training / "metrics.jsonl", "a") as file:
        for line in ('{"step": true, "loss": 1}', "[1]", "9" * 5000, '{"step": 30, "validation": ['):
            file.write(line + "\n" if line[-1] != "[" else line)
    (training / "best" / "best.json").write_text('{"measure": "FD[x]", "value": null, "step": 10}')
    history = read_history(training)
    assert (history.steps, history.validations, history.best) == (whole.steps, whole.validations, None)
    assert ldm("report", training).code == 0
    odd = {"accuracy_by_noise": [1, {"t": "x"}], "validation_loss_by_noise_quarter": [None, {}], "psnr": "high"}
    with open(training / "metrics.jsonl", "a") as file:
        file.write("\n" + json.dumps({"step": 31, "validation": odd}) + "\n" + json.dumps({"step": 32, "loss": []}))
    outcome = ldm("report", training)
    assert outcome.code == 0, outcome.err


def test_what_is_no_training_is_refused(training, ldm, tmp_path):
    (training / "metrics.jsonl").write_text('{"loss": 2}\n[1]\n')
    for arguments, words in (
        ([tmp_path], "no run.json"),
        ([training], "no line of it is one of a log"),
        ([training, "--output", tmp_path], "is a folder"),
        ([], "RUN is missing"),
    ):
        outcome = ldm("report", *arguments)
        assert outcome.code == 2 and outcome.err.count("\n") == 1 and words in outcome.err, outcome.err
    assert not (training / "report.html").exists()
