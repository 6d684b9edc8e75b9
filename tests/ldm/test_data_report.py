"""The block about the data: where it is printed, once, and that what a stranger wrote in it is inert."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import ldm.cli
from ldm.data.report import DataReport, PassedOver, Reading
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.folders import evaluate_folders

OPENS = re.compile(r"\b(open_data|evaluate_folders)\(")

FOLDER = ("--image-size", "16", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images with captions, and a list that is not read."""
    path = tmp_path / "data"
    path.mkdir()
    rows = []
    for number in range(24):
        Image.new("RGB", (16, 16), (number * 10, 100, 50)).save(path / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "prompt": f"shade {number}"}))
    (path / "metadata.jsonl").write_text("\n".join(rows))
    (path / "more.csv").write_text("a,b")
    return path


TINY = (
    "--train-batch-size", 8, "--validation-images", 2, "--block-out-channels", 8, 8, "--norm-num-groups", 4,
    "--no-attention", "--latent-channels", 4, "--calibration-images", 8, "--max-train-steps", 1,
)  # fmt: skip


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ldm.cli.main import main

    run = tmp_path_factory.mktemp("runs") / "ae"
    shapes = ("--data", "shapes", "--shapes-train", 8, "--shapes-validation", 4)
    assert main([str(word) for word in ("train", "autoencoder", *shapes, *FOLDER, *TINY, "--output-dir", run)]) == 0
    return run


def commands(autoencoder, folder, tmp_path):
    given = ["--data", folder, *FOLDER]
    half = ["--validation-fraction", 0.5]
    train = ["train", "autoencoder", *given, *TINY, "--output-dir", tmp_path / "run"]
    return {
        "info": ["info", folder],
        "train": train,
        "dry run": [*train, "--dry-run"],
        "encode": ["encode", "--autoencoder", autoencoder, *given, "--output-dir", tmp_path / "latents"],
        "evaluate": ["evaluate", autoencoder, "--metrics", "psnr", *given, *half],
    }


@pytest.mark.parametrize("name", ["info", "train", "dry run", "encode", "evaluate"])
def test_a_command_that_works_on_data_says_once_what_it_read(name, ldm, autoencoder, folder, tmp_path) -> None:
    result = ldm(*commands(autoencoder, folder, tmp_path)[name])
    assert result.code == 0, result.err
    assert result.out.startswith("data: ") and result.out.count("data: ") == 1
    assert "  images: 24 of 16 x 16 pixels" in result.out and "  held out: " in result.out
    assert 'captions in column "prompt", a usual name (--text-column names another)' in result.out
    assert "captions: 24 of 24 images have one" in result.out
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "1 file ending .csv" in warnings[0] and "--metadata-file" in warnings[0]


def test_every_command_that_opens_data_shows_its_report() -> None:
    folder = Path(ldm.cli.__file__).parent
    opening = {path.name: text for path in folder.glob("*.py") if OPENS.search(text := path.read_text())}
    assert len(opening) >= 8
    assert [name for name, text in opening.items() if "show_data" not in text] == ["quickstart.py"]  # by its trainings


def test_folders_that_are_compared_are_reported(folder, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "notes.docx").write_text("x")
    reports: list[DataReport] = []

    def stop(*given: DataReport) -> None:
        reports.extend(given)
        raise RuntimeError("far enough")

    with pytest.raises(RuntimeError, match="far enough"):
        evaluate_folders(folder, other, EvaluationConfig(metrics=("kid",)), on_read=stop)
    blocks = ["\n".join(report.lines()) for report in reports]
    assert len(blocks) == 2 and all("  images: 24 of 16 x 16 pixels" in block for block in blocks)
    assert "1 file ending .csv: may hold captions" in blocks[0] and "1 file ending .docx: neither" in blocks[1]
    assert not any(report.warnings() for report in reports), "captions and classes do not count there"


def test_a_report_is_safe_to_print_and_stable() -> None:
    evil = "a\x1b[31m\n\u202eb"
    passed = (PassedOver("file ending .txt", 1200, "not read", evil), PassedOver("column (x)", 1, evil, condition=True))
    report = DataReport(
        evil, Reading("layout", (evil,), passed), 2000, 32, ((16, 20), (64, 48)), "100 of them",
        ((evil, 1999), ("b", 0)), unlabelled=1, captioned=3, captions=5,
    ).with_note(evil).with_warning(evil)  # fmt: skip
    lines = [*report.lines(), *report.warnings()]
    assert all(line.isprintable() for line in lines)
    safe = "a\\x1b[31m\\n\\u202eb"
    assert lines == [
        f"data: {safe} (layout)",
        "  images: 2,000 from 20 x 16 to 48 x 64 pixels, used at 32 x 32 "
        "(enlarged up to 2 times or shrunk up to 1.5 times)",
        "  held out: 100 of them",
        f"  classes: 2: {safe} 1,999, b 0; 1 of them without an image",
        "  captions: 3 of 2,000 images have one, 5 captions in all",
        f"  read: {safe}",
        f'  not used: 1,200 files ending .txt: not read, such as "{safe}"',
        f"  {safe}",
        f"not used: 1 column (x): {safe}",
        "without a caption: 1,997 of 2,000 images, which are read with an empty one",
        "without a class: 1 of 2,000 images",
        safe,
    ]
