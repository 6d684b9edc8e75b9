"""The quick start's rows go on where they were stopped; its folder and its page are known to other commands."""

import json
from dataclasses import asdict

import pytest

from ldm.cli import quickstart_rows
from ldm.cli.quickstart_rows import row_of, setups
from ldm.data.shapes import ShapesData


@pytest.fixture
def data():
    return ShapesData("validation", 32, size=(1, 120))


@pytest.fixture
def rows(monkeypatch, data, fake_pipeline):
    """`rows(folder, stop)`: all rows, with the batches drawn; stopped before batch number `stop`."""
    monkeypatch.setattr(quickstart_rows, "_BATCH_SIZE", 4)

    def judge(images):
        names = ["red" if pixels[0].mean() > 0 else "blue" for pixels in images]
        return [{"shape": "circle", "colour": name, "background": "black"} for name in names]

    def run(root, stop=None):
        class Stopping(fake_pipeline):
            def sample_batch(self, requests, *arguments):
                if len(drawn) == stop:
                    raise KeyboardInterrupt
                drawn.append(len(requests))
                return super().sample_batch(requests, *arguments)

        drawn, pipeline = [], Stopping(data)
        pipeline.by_caption |= {"a large circle": 0, "": 0}
        return [row_of(setup, root, pipeline, "m", judge) for setup in setups(data, 6, 2)], drawn

    return run


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.json")}


def test_rows_that_were_stopped_go_on(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, drawn = rows(tmp_path / "whole")
    assert drawn == [4, 2, 1] * 7, "two batches, and one image to count its evaluations"
    with pytest.raises(KeyboardInterrupt):
        rows(tmp_path / "parts", stop=4)  # after the first row and a batch of the second
    again, drawn = rows(tmp_path / "parts")
    assert again == whole and drawn == [2, 1] + [4, 2, 1] * 5
    assert rows(tmp_path / "parts") == (whole, []), "nothing finished is done again"
    assert files(tmp_path / "parts") == {
        name: text.replace(b"whole", b"parts") if "settings" in name else files(tmp_path / "parts")[name]
        for name, text in files(tmp_path / "whole").items()
    }


def test_info_and_report_take_its_folder(rows, ldm, refused, tmp_path):
    root = tmp_path / "q"
    found, _ = rows(root)
    state = {"kind": "quickstart", "command": "ldm quickstart --output-dir q", "seconds": {"ldm train x": 3.0}}
    state["settings"] = {"num_images": 6, "num_inference_steps": 2, "output_dir": "q"}
    (root / "unfinished.json").write_text(json.dumps(state))
    outcome = ldm("info", root)
    assert "quick start: not finished; goes on by ldm quickstart --output-dir q" in outcome.out
    assert "done: ldm train x" in outcome.out
    refused(["report", root], root, "this quick start is not finished", "its command goes on")
    figures = {"reconstruction_psnr_db": 29.9, "reconstruction_ssim": 0.9, "rows": [asdict(row) for row in found]}
    figures["judge_accuracy_on_held_out_shapes"] = {"shape": 0.99}
    (root / "unfinished.json").unlink()
    (root / "quickstart.json").write_text(json.dumps(state | figures))
    assert ldm("report", root).code == 0
    page = (root / "report.html").read_text()
    assert page.count("<img ") == 7 and "29.9 dB PSNR" in page and "ldm quickstart --output-dir q" in page
    assert page.count("large circle") >= 6 and "http" not in page.replace("http-equiv", "")
    out = ldm("info", root).out
    assert "quick start: finished" in out and "full captions, --guidance-scale 7.5: shape " in out
    finished = ldm("quickstart", "--output-dir", root, "--num-images", 6, "--num-inference-steps", 2)
    assert finished.code == 0 and "29.9 dB PSNR" in finished.out, "what is done is shown, not done again"


def test_a_folder_of_something_else_is_left_alone(refused, tmp_path):
    (tmp_path / "thesis.txt").write_text("my only copy")
    refused(["quickstart", "--output-dir", tmp_path], "holds something else")
    refused(["quickstart", "--output-dir", tmp_path / "thesis.txt"], "is a file")
