"""Runs from before a setting existed go on, and are evaluated, by the rule that held then."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from ldm.training.tasks.published import dataset_of

EARLIER = ("least_tokens", "layout_version")


@pytest.fixture
def numbered(tmp_path):
    """Images with labels 0, 4 and 6, and captions."""
    generator, folder = np.random.Generator(np.random.PCG64(0)), tmp_path / "images"
    folder.mkdir()
    rows = []
    for row in range(24):
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{row}.png")
        rows.append({"file_name": f"{row}.png", "label": (0, 4, 6)[row % 3], "text": f"image number {row}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_an_earlier_run_goes_on_with_its_classes_and_tokens(models, ldm, numbered, caplog, tmp_path):
    def command(run, *flags, steps):
        flags = ["--data", numbered, "--validation-fraction", 0.2, "--latents", run / "latents", *flags]
        return models.command("diffusion", run, *flags, "--class-conditional", "True", steps=steps)

    run, new = tmp_path / "earlier", tmp_path / "new"
    as_then = ("--least-tokens", 2, "--layout-version", 1)
    assert ldm(*command(run, *as_then, steps=2)).code == 0
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("".join(
        line for line in settings.splitlines(keepends=True) if not re.match(rf"\s*({'|'.join(EARLIER)}):", line)
    ))  # fmt: skip
    assert dataset_of(run).layout_version == 1
    again = ldm(*command(run, steps=4))
    assert again.code == 0, again.err
    found = json.loads((run / "conditioning.json").read_text())
    assert found["class_names"] == list("0123456") and found["text"]["max_tokens"] == 6
    assert "least_tokens: 2" in (run / "config.yaml").read_text()
    assert ldm(*command(new, steps=1)).code == 0
    found = json.loads((new / "conditioning.json").read_text())
    assert found["class_names"] == ["0", "4", "6"] and found["text"]["max_tokens"] == 32
    assert found["null_class"] == 3 and dataset_of(new).layout_version == 2

    drawn = ldm("sample", run, "--num-images", 4, "--num-inference-steps", 2, "--output-dir", tmp_path / "out")
    assert drawn.code == 0
    requests = json.loads((tmp_path / "out" / "settings.json").read_text())["requests"]
    assert [request["class_label"] for request in requests] == [0, 4, 6, 0], "classes without images are not drawn"
    named = ("--class-label", "3", "--num-images", 1, "--num-inference-steps", 2, "--output-dir", tmp_path / "three")
    assert ldm("sample", run, *named).code == 0
    assert "note: `class_label`: the training had no image of 3" in caplog.text
