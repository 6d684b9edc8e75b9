"""`python -m tools.bench`: its flags, its report, its verdict, and the counts of operations that may not rise."""

import itertools
import json

import pytest
import torch

from tools.bench.__main__ import main
from tools.bench.counts import counts, flops, peak_bytes
from tools.bench.report import EXPECTED, Result
from tools.bench.row import row
from tools.bench.timing import Paired, paired

CPU = torch.device("cpu")


def test_rows_run_and_the_report_is_whole(tmp_path, capsys):
    """These include what a U-Net call and a training step dispatch: `--check` fails when that rises."""
    path, rows = tmp_path / "bench.json", ["ddim", "ema", "forward-cifar10", "step-small", "step-memory"]
    for _ in range(4):  # a quick run on a busy machine may time a limit too slowly
        main(["--quick", "--repeats", "1", "--json", str(path), "--rows", *rows])
        report = json.loads(path.read_text())
        if all(found["unit"] == "bytes" or found["limit_ms"] < found["summary"]["ours"] for found in report["rows"]):
            break
    assert [found["row"] for found in report["rows"]] == rows
    assert report["machine"]["device"] == "cpu" and report["machine"]["convolution_gflops"] > 0 and report["quick"]
    expected = json.loads(EXPECTED.read_text())["cpu"]
    for found in report["rows"]:
        assert found["difference"] <= found["tolerance"], found["row"]
        assert min(found["summary"].values()) > 0
        assert found["operations"] <= expected[found["row"]]["operations"], found["row"]
        assert found["synchronisations"] <= expected[found["row"]]["synchronisations"], found["row"]
        assert found["unit"] == "bytes" or found["limit_ms"] < found["summary"]["ours"]
    memory = report["rows"][-1]["summary"]
    assert memory["ratio"] >= 1, "a training step takes no more memory than diffusers'"
    assert "forward-cifar10" in capsys.readouterr().out


def test_every_row_has_its_counts():
    here = {name for name, each in row.rows.items() if "cpu" in each.devices}
    assert set(json.loads(EXPECTED.read_text())["cpu"]) == here


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows", "forwards"], "--rows forwards: no such row"),
        (["--repeats", "0"], "--repeats: must be 1 or more, got 0"),
        (["--threads", "x"], "argument --threads: invalid int value: 'x'"),
        (["--sideways"], "unrecognized arguments: --sideways"),
        (["--device", "tpu"], "--device tpu: unknown"),
        (["--json", "/nowhere/at/all.json"], "--json /nowhere/at/all.json: no such folder"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, message, capsys):
    assert main(flags) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"bench: {message}") and err.count("\n") == 1


def result(**changes):
    summary = {"ours": 1.0, "theirs": 1.5, "ratio": 1.5, "ratio_p10": 1.4, "ratio_p90": 1.6}
    facts = {
        "row": "r",
        "title": "",
        "mode": "eager",
        "unit": "ms",
        "summary": summary,
        "goal": 1.6,
        "floor": 1.6,
        "difference": 0.0,
    }
    facts |= {"tolerance": 1e-5, "limit_ms": 0.1, "operations": 10, "synchronisations": 1, "repeats": 3}
    return Result(**(facts | changes))


def test_the_check_fails_for_a_slow_row_a_wrong_one_and_a_longer_one():
    expected = {"r": {"operations": 10, "synchronisations": 1}}
    assert result().failures(expected) == []
    assert "90th percentile 1.60, below its floor 1.7" in result(floor=1.7).failures(expected)[0]
    assert "results differ by" in result(difference=float("nan")).failures(expected)[0]
    assert "11 dispatched operations, at most 10" in result(operations=11).failures(expected)[0]
    assert "2 dispatched synchronisations" in result(synchronisations=2).failures(expected)[0]


def test_ratios_are_of_neighbours_and_the_order_alternates():
    assert Paired([1.0, 2.0, 4.0], [3.0, 2.0, 2.0]).ratios == [3.0, 1.0, 0.5]
    summary = Paired([1.0] * 11, [float(value) for value in range(11)]).summary()
    assert (summary["ratio"], summary["ratio_p10"], summary["ratio_p90"]) == (5, 1, 9)
    seen, ticks = [], itertools.count(1)

    def clock(function, calls):
        function()
        return float(next(ticks))

    paired(lambda: seen.append("a"), lambda: seen.append("b"), clock, 3, quick=True)
    assert seen[-6:] == ["a", "b", "b", "a", "a", "b"]


def test_what_is_counted():
    a, b = torch.ones(8, 4), torch.ones(4, 2)
    assert counts(lambda: (a @ b).sum().item()) == {"operations": 3, "synchronisations": 1}
    assert flops(lambda: a @ b) == 2 * 8 * 4 * 2

    def holds():
        kept = [torch.empty(1000), torch.empty(1000)]
        kept.pop()
        kept.append(torch.empty(500))
        kept[0].add_(1)
        return len(kept)

    assert peak_bytes(holds, CPU) == 4 * 2000
