"""`from ldm import compare`: a comparison in one call."""

import dataclasses
import sys

import pytest

from ldm import compare
from ldm.comparison.api import method_text
from ldm.comparison.records import Comparison
from ldm.runtime.errors import UserError
from ldm.sampling.pipeline import Pipeline
from samplers import AdaptiveProjected, Classifier, ClassifierFree, guidances, parse_guidance

FEW = {"num_images": 22, "num_reference": 24, "num_inference_steps": 3, "extractor": "trained", "bootstrap": 4}


@pytest.fixture
def table(models, tmp_path, quick_networks):
    methods = ["none", "cfg", ClassifierFree(4.0, interval=(0.3, 5.0)), ["cfg(4)", "rescale(0.7)"]]
    return compare(models.text, methods, metrics=["fid", "recall"], guidance_scales=[2.0], device="cpu", **FEW)


def test_a_table_of_frozen_records(table, models, tmp_path):
    labels = ["none", "cfg 2", "cfg(4.0, interval=(0.3, 5.0))", "cfg(4) + rescale(0.7)"]
    assert [run.label for run in table] == labels and len(table) == 4
    assert str(table) == table.table() and str(table).splitlines()[2].startswith("none")
    assert table["cfg 2"] is table[1] and table[1].result["fid"].value > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        table[0].label = "mine"
    with pytest.raises(KeyError, match="compared: none, cfg 2"):
        table["cfg 3"]
    # of a loaded pipeline with its data, and with a folder: the same figures
    pipeline = Pipeline.load(models.text)
    from ldm.data.config import DataConfig

    data = DataConfig("shapes", image_size=16, shapes_train=64, shapes_validation=32)
    again = compare(pipeline, ["none"], data=data, metrics=("fid", "recall"), output_dir=tmp_path / "out", **FEW)
    assert again[0].result.figures == table[0].result.figures and (tmp_path / "out" / "report.html").is_file()


def test_as_a_data_frame(table):
    pandas = pytest.importorskip("pandas")
    frame = table.to_pandas()
    assert list(frame["label"]) == [run.label for run in table]
    assert frame.loc[1, "fid"] == table[1].result["fid"].value and frame["seconds_per_image"].gt(0).all()
    assert isinstance(frame, pandas.DataFrame) and frame["guidance_scale"].tolist()[1] == 2.0


def test_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pandas is not installed"):
        Comparison((), {}, {}).to_pandas()


def test_guidance_objects_become_the_text_that_makes_them_again():
    objects = [
        ClassifierFree(3.0),
        ClassifierFree(2.0, "weak", (0.1, 4.0)),
        AdaptiveProjected(4.0, momentum=-0.5),
        Classifier(3.0, interval=(0.0, 2.0)),
        *(parse_guidance(f"{name}(0.5)") for name in guidances()),
    ]
    for guidance in objects:
        assert parse_guidance(method_text(guidance)) == guidance
    assert method_text(ClassifierFree(3.0)) == "cfg(3.0)"
    with pytest.raises(UserError, match="object is not a registered guidance"):
        method_text(object())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_image": 3}, "unknown setting 'num_image'.*did you mean \"num_images\""),
        ({"guidances": ["cgf"]}, 'did you mean "cfg"'),
        ({"num_images": 1}, "`num_images`: expected 4 or more"),
        ({"data": "nowhere"}, "neither a folder nor a known name"),
        ({"weak": "nowhere"}, "nowhere"),
    ],
)
def test_what_is_refused(models, given, words):
    with pytest.raises(UserError, match=words):
        compare(models.text, **given)
