"""The verdict and the report of a comparison, from cells whose figures are made up."""

import csv
import io
import json
from html.parser import HTMLParser

import pytest
import torch

from ldm.comparison import Cell, Comparison, ComparisonConfig, judge_cells, pareto_front
from ldm.comparison.methods import plan
from ldm.comparison.picture import save_strip
from ldm.comparison.report import render, write_csv
from ldm.data.shapes import ShapesData
from ldm.evaluation.metrics.intervals import interval
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.reports.history import read_history
from ldm.runtime.errors import UserError
from ldm.runtime.images import save_grid
from ldm.runtime.memory import PeakMemory
from ldm.sampling.config import SamplingConfig

EVIL = "<script>alert(1)</script>"


def cell(label, value, cost, halves=(), recall=0.5, method=None, scale=None):
    halves = tuple(value + half for half in halves)
    figures = (
        MetricValue("fid", "FD[toy]", value, interval=interval(value, halves), halves=halves),
        MetricValue("recall", "recall[toy]", recall, higher_is_better=True),
        MetricValue("accuracy/shape", "accuracy[shape]", 0.75, 0.01, higher_is_better=True),
    )
    result = EvaluationResult(figures, {}, evaluations_per_image=cost, seconds_per_image=cost / 100)
    return Cell(label, method or label, scale, None, "ddim", 25, 10**7, result)


SHARED = [0.3, -0.2, 0.1, -0.4, 0.2] * 8  # what all methods' halves have in common
OWN = [0.02, -0.02, 0.01, -0.01] * 10
CELLS = (
    cell("none", 9.0, 25, SHARED, recall=0.6),
    cell("cfg 3", 4.0, 50, SHARED, recall=0.5, method="cfg", scale=3.0),
    cell("cfg 7.5", 4.1, 50, [a + b for a, b in zip(SHARED, OWN, strict=True)], 0.3, "cfg", 7.5),
    cell("pag", 3.99, 75, [a + 20 * b for a, b in zip(SHARED, OWN, strict=True)], recall=0.55),
)


def test_the_verdict_pairs_what_the_cells_have_in_common():
    found = judge_cells(CELLS[:3])
    assert found.best is CELLS[1] and [rival.cell.label for rival in found.rivals] == ["cfg 7.5", "none"]
    near = found.rivals[0]
    ends = CELLS[1].result["fid"].interval
    assert near.worse < ends[1] - ends[0], "unpaired, the two intervals overlap"
    assert not near.undecided and 0.05 < near.interval[0] < 0.1 < near.interval[1] < 0.15
    assert found.sentence == (
        "cfg 3 has the lowest FD[toy] of 3: 4 (95 %: 3.6 to 4.3); "
        "the next, cfg 7.5, is worse by 0.1 (95 %: 0.08 to 0.12)."
    )
    everyone = judge_cells(CELLS)
    assert everyone.best is CELLS[3] and everyone.rivals[0].undecided
    assert "do not tell it from cfg 3, cfg 7.5." in everyone.sentence


def test_budgets_bound_who_may_win():
    assert judge_cells(CELLS, budget_evaluations=50).best is CELLS[1]
    assert judge_cells(CELLS, budget_seconds=0.3).best is CELLS[0]
    assert "1 within 25 network evaluations an image" in judge_cells(CELLS, budget_evaluations=25).sentence
    none = judge_cells(CELLS, budget_evaluations=3)
    assert none.best is None and none.sentence == "None of the 4 cells stays within 3 network evaluations an image."


def test_the_front_is_what_nothing_beats_in_both():
    assert [each.label for each in pareto_front(CELLS, "fid")] == ["none", "cfg 3", "pag"]
    assert [each.label for each in pareto_front(CELLS, "fid", "recall")] == ["none", "pag"]


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
    cells = (*CELLS, cell(EVIL, 5.0, 50, SHARED))
    strips = []
    for number in range(len(cells)):
        strips.append(tmp_path / f"{number}.png")
        save_strip(torch.full((2, 3, 8, 8), number / 5), strips[-1])
    manifest = {"num_images": 40, "num_reference": 60, "data": EVIL, "split": "validation", "rows": 2, "seed": 0}
    manifest |= {"conditions": "as drawn", "extractor": EVIL, "preprocessing": "none"}
    found = Comparison(cells, {"classifier": EVIL}, manifest, (EVIL,))
    return render(found, judge_cells(cells), strips, conditions=[EVIL, "b"], command=f"ldm compare {EVIL}", model=EVIL)


def test_the_report_is_one_file_and_inert(page):
    found = Page(page)
    tags = [tag for tag, _ in found.tags]
    assert tags.count("script") == 1 and page.count(EVIL) == 0 and "alert(1)" in page
    assert found.links and all(link.startswith(("data:image/webp;base64,", "#")) for link in found.links)
    assert "url(http" not in page and "@import" not in page and "default-src 'none'" in page
    assert any(EVIL in text for text in found.texts), "shown as text"
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert (
        len(images) == 5 and all(image["alt"] for image in images) and sum("hidden" in image for image in images) == 1
    )
    sliders = [attributes for tag, attributes in found.tags if tag == "input"]
    assert len(sliders) == 1 and (sliders[0]["min"], sliders[0]["max"]) == ("0", "1")
    assert tags.count("button") == tags.count("th") == 7 and tags.count("svg") == 3
    assert all(attributes.get("aria-label") for tag, attributes in found.tags if tag == "svg")
    assert "cfg 3 has" not in page and "pag has the lowest FD[toy] of 5" in page


def test_the_table_as_csv():
    manifest = {"num_images": 40}
    rows = list(csv.DictReader(io.StringIO(write_csv(Comparison(CELLS, {}, manifest)))))
    assert [row["label"] for row in rows] == [each.label for each in CELLS]
    assert float(rows[1]["fid"]) == 4.0 and float(rows[1]["fid_low"]) == CELLS[1].result["fid"].interval[0]
    assert (
        rows[1]["recall_low"] == ""
        and rows[2]["guidance_scale"] == "7.5"
        and rows[0]["peak_memory_bytes"] == "10000000"
    )


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r\n@"])
def test_no_text_in_a_csv_is_a_formula(start):
    table = Comparison((cell(f"{start}HYPERLINK(0)", -4.0, 50),), {}, {})
    (row,) = csv.DictReader(io.StringIO(write_csv(table), newline=""))
    assert row["label"] == row["method"] == f"'{' ' * (len(start) - 1)}{start[-1]}HYPERLINK(0)"
    assert float(row["fid"]) == -4, "a number is one"


def test_cells_survive_json():
    for each in CELLS:
        assert Cell.from_json(json.loads(json.dumps(each.to_json()))) == each


def test_a_grid_of_samplers_and_steps(fake_pipeline):
    data = ShapesData("validation", 32, size=(1, 12))
    base = SamplingConfig(num_inference_steps=25)
    cells, _ = plan(["none", "cfg"], fake_pipeline(data), data, base, (3.0, 7.5), (), ("ddim", "dpmpp_2m"), (10, 25))
    assert (
        len(cells) == 3 * 4 and len({each.slug for each in cells}) == 12 and len({each.label for each in cells}) == 12
    )
    assert cells[0].label == "none | ddim 10" and cells[-1].label == "cfg 7.5 | dpmpp_2m 25"
    assert (cells[-1].sampling.sampler, cells[-1].sampling.num_inference_steps) == ("dpmpp_2m", 25)
    alone, _ = plan(["none"], fake_pipeline(data), data, base, (3.0,), (), ("dpmpp_2m",))
    assert alone[0].label == "none" and alone[0].sampling.sampler == "dpmpp_2m"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samplers": ("ddin",)}, "--samplers.*ddin.*ddim"),
        ({"steps": (0,)}, "--steps: expected 1 or more"),
        ({"budget_evaluations": 0.0}, "--budget-evaluations: expected a number above 0"),
    ],
)
def test_grids_are_refused_in_one_line(settings, words):
    with pytest.raises(UserError, match=words):
        ComparisonConfig(**settings)


def test_peak_memory_sees_what_was_taken_and_given_back():
    with PeakMemory(torch.device("cpu")) as peak:
        torch.ones(2**26)  # 256 MiB
    # the system may take back other pages of this process meanwhile, and libraries may take some
    assert peak.bytes is None or 2**27 < peak.bytes < 2**29


@pytest.fixture
def training(tmp_path):
    """A run folder as a training leaves it, with a settings file that means ill."""
    root = tmp_path / "run"
    (root / "samples").mkdir(parents=True)
    about = {"kind": "classifier", "facts": {}, "commands": [f"ldm train classifier --data {EVIL}"]}
    (root / "run.json").write_text(json.dumps(about))
    (root / "config.yaml").write_text(f"dataset: {EVIL}\n")
    steps = [{"step": step, "loss": 2.0 / step, "learning_rate": 1e-3, "odd": None} for step in range(1, 30)]
    noise = [{"t": t, "noise_ratio": 0.1, "accuracy": 1 - t / 1000} for t in (0.0, 500.0)]
    held = [{"step": step, "validation": {"accuracy": step / 40, "accuracy_by_noise": noise}} for step in (10, 29)]
    figures = [{"step": step, "evaluation": {"FD[x]": value}} for step, value in ((10, 3.0), (29, 4.0))]
    (root / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in [*steps, *held, *figures]))
    (root / "best").mkdir()
    (root / "best" / "best.json").write_text(json.dumps({"measure": "FD[x]", "value": 3.0, "step": 10}))
    for step in (10, 29):
        save_grid(torch.full((4, 3, 8, 8), step / 40), root / "samples" / f"step-{step:06d}.png")
    return root


def test_the_report_of_a_training(training, ldm):
    found = ldm("report", training)
    assert found.code == 0, found.err
    text = (training / "report.html").read_text()
    page = Page(text)
    assert text.count(EVIL) == 0 and any(EVIL in each for each in page.texts)
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in page.links)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("svg") == 5 and tags.count("img") == 2 and tags.count("input") == 1
    assert any("Step 29: loss 0.06897. On held-out data at step 29: accuracy 0.725. " in each for each in page.texts)
    assert any("Best by FD[x]: 3 at step 10." in each for each in page.texts)
    assert sum(EVIL in each and "ldm train" in each for each in page.texts) == 1, "the command"
    drawn = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert "loss against step. loss: 2 at 1, 0.06897 at 29." in drawn
    assert "FD[x] (samples) against step. FD[x]: 3 at 10, 4 at 29. best: step 10." in drawn
    assert (
        sum(label.startswith("accuracy against time t. step 10: 1 at 0, 0.5 at 500; step 29") for label in drawn) == 1
    )
    assert [dict(attributes) for tag, attributes in page.tags if tag == "tr" and "class" in dict(attributes)] == [
        {"class": "best"}
    ]
    history = read_history(training)
    assert len(history.steps) == 29 and [each["step"] for each in history.validations] == [10, 29]


def test_a_killed_training_has_a_report(training, ldm):
    """A line that was not written to its end, and lines that mean ill, are passed over."""
    whole = read_history(training)
    with open(training / "metrics.jsonl", "a") as file:
        for line in ('{"step": true, "loss": 1}', "[1]", "9" * 5000, '{"step": 30, "validation": ['):
            file.write(line + "\n" if line[-1] != "[" else line)
    (training / "best" / "best.json").write_text('{"measure": "FD[x]", "value": null, "step": 10}')
    (training / "run.json").write_text('["nothing", "of", "a run"]')
    found = read_history(training)
    assert (found.steps, found.validations, found.best) == (whole.steps, whole.validations, None)
    assert ldm("report", training).code == 0
    odd = {"accuracy_by_noise": [1, {"t": "x"}], "validation_loss_by_noise_quarter": [None, {}], "psnr": "high"}
    with open(training / "metrics.jsonl", "a") as file:
        file.write("\n" + json.dumps({"step": 31, "validation": odd}) + "\n" + json.dumps({"step": 32, "loss": []}))
    found = ldm("report", training)
    assert found.code == 0, found.err


def test_what_is_no_training_is_refused(training, ldm, tmp_path):
    (training / "metrics.jsonl").write_text('{"loss": 2}\n[1]\n')
    for arguments, words in (
        ([tmp_path], "no run.json"),
        ([training], "no line of it is one of a log"),
        ([training, "--output", tmp_path], "is a folder"),
        ([], "RUN is missing"),
    ):
        found = ldm("report", *arguments)
        assert found.code == 2 and found.err.count("\n") == 1 and words in found.err, found.err
    assert not (training / "report.html").exists()
