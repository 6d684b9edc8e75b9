"""Tables and counts in the terminal: at most as wide as it is, with long names below, and no "1 images"."""

import os
import sys

import pytest

from ldm.cli.main import main
from ldm.comparison.tables import align_columns
from ldm.runtime.text import counted

FEATURES = "trained-cnn:shapes:52de6987"
ROWS = [
    ["method", f"FD[{FEATURES}]", f"precision[{FEATURES}]", "accuracy[shape]", "evaluations/image", "seconds/image"],
    ["none", "12.3", "0.9", "80.1 %", "25", "0.1"],
    ["cfg(7.5) + rescale(0.7) | dpmpp_2m 20", "10.1", "0.8", "99.0 %", "40", "0.2"],
]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_comparison_is_as_wide_as_the_terminal(width):
    lines = align_columns(ROWS, width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[-1] == f"[1] {FEATURES}" and lines[0].split()[:3] == ["method", "FD[1]", "precision[1]"]
    for text in (text for row in ROWS[1:] for text in row[1:]):
        assert any(line.rstrip().endswith(text) or f"{text} " in line for line in lines), text
    blocks = sum(line.startswith("method") for line in lines)
    assert blocks == (1 if width == 200 else blocks) and all(
        sum(line.startswith(row[0][:20]) for line in lines) == blocks for row in ROWS[1:]
    )


def test_a_file_has_the_whole_names_in_one_block():
    assert FEATURES in align_columns(ROWS).splitlines()[0] and len(align_columns(ROWS).splitlines()) == 4


@pytest.mark.parametrize("kind", ["samplers", "guidances", "metrics", "bottlenecks"])
@pytest.mark.parametrize("width", [60, 100])
def test_lists_are_as_wide_as_the_terminal(kind, width, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((width, 20)))
    assert main(["list", kind]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= width


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, "image"), "1 image"), ((2, "image"), "2 images"), ((0, "class"), "0 classes"), ((1, "class"), "1 class"),
        ((1234, "file ending .pdf"), "1,234 files ending .pdf"), ((1, "file ending .pdf"), "1 file ending .pdf"),
        ((3, "network evaluation", "network evaluations"), "3 network evaluations"),
    ],
)  # fmt: skip
def test_counts_have_the_right_plural(arguments, text):
    assert counted(*arguments) == text
