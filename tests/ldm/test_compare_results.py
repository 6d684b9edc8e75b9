"""Figures of several files are shown side by side only where they were measured alike."""

import csv
import io
import json

import pytest

from ldm.evaluation.records import EvaluationResult, MetricValue

MANIFEST = {"extractor": "inception", "num_images": 1000, "num_reference": 5000, "seed": 0, "data_fingerprint": "f"}


def write(path, value, name="FID", **manifest):
    values = (
        MetricValue("fid", name, value, interval=(value - 1, value + 1)),
        MetricValue("kid", "KID", value / 100, 0.001),
    )
    path.write_text(json.dumps(EvaluationResult(values, {**MANIFEST, **manifest}).to_json()))
    return path


@pytest.fixture
def files(tmp_path):
    a = write(tmp_path / "a.json", 7.25, sampling={"sampler": "ddim"})
    b = write(tmp_path / "b.json", 6.5, sampling={"sampler": "unipc"}, model="m")
    runs = [{"label": "=cmd()", "result": json.loads(b.read_text())}]
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "comparison.json").write_text(json.dumps({"cells": runs}))
    return a, b, tmp_path / "grid"


def test_results_measured_alike_are_in_one_table(files, ldm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = ldm("compare", "results", *(file.name for file in files), "--output", "t.csv")
    assert outcome.code == 0, outcome.err
    head, _, *rows = outcome.out.splitlines()
    assert head.split() == ["figures", "of", "FID", "KID"]
    assert [row.split()[0] for row in rows[:3]] == ["a.json", "b.json", "grid:"] and "0.0725 ± 0.001" in rows[0]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert [float(line["FID"]) for line in lines] == [7.25, 6.5, 6.5] and not any(
        x["measured otherwise"] for x in lines
    )


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"num_images": 500}, "num_images 500, the first's 1000"),
        ({"num_reference": 1}, "num_reference 1"),
        ({"extractor": "dino"}, "extractor dino, the first's inception"),
        ({"data_fingerprint": "g", "seed": 3}, "data_fingerprint g, the first's f; seed 3, the first's 0"),
        ({"preprocessing": "none"}, "preprocessing none, the first's null"),
    ],
)
def test_what_was_measured_otherwise_is_refused_or_marked(files, refused, ldm, tmp_path, manifest, words):
    c = write(tmp_path / "c.json", 5.0, **manifest)
    refused(["compare", "results", *files, c], "c.json: not measured as", words, "--allow-different")
    outcome = ldm("compare", "results", *files, c, "--allow-different")
    assert outcome.code == 0 and words.split(";")[0] in outcome.out and "not comparable" in outcome.out
    assert [f"* {', '.join(sorted(manifest))}" in line for line in outcome.out.splitlines()[2:6]] == [
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("text", ["[]", "{}", '{"cells": 3}', '{"figures": [{"value": "x"}], "manifest": {}}', "null"])
def test_other_files_are_refused(files, refused, tmp_path, text):
    (tmp_path / "d.json").write_text(text)
    refused(["compare", "results", files[0], tmp_path / "d.json"], "d.json: not the figures of")
    refused(["compare", "results"], "FILE is missing")


def test_an_evaluation_beside_a_comparison_of_the_same_kind(models, ldm, tmp_path, quick_networks):
    same = ["--metrics", "fid", "--num-images", 22, "--num-reference", 24, "--num-inference-steps", 3, "--bootstrap", 4]
    same += ["--extractor", "trained", "--device", "cpu"]
    assert ldm("evaluate", models.text, *same, "--guidance-scale", 1, "--output", tmp_path / "a.json").code == 0
    assert ldm("compare", models.text, *same, "--methods", "none", "cfg(4)", "--output-dir", tmp_path / "b").code == 0
    outcome = ldm("compare", "results", tmp_path / "a.json", tmp_path / "b")
    assert outcome.code == 0, outcome.err
    first, none, guided = (
        line.split(name)[-1].split()
        for line, name in zip(outcome.out.splitlines()[2:5], ("a.json", ": none", ": cfg(4)"), strict=True)
    )
    assert first == none != guided
