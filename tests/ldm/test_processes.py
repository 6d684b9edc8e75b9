"""Several processes of one run give what one gives; the first alone writes and speaks, and none waits for the dead."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from ldm.runtime.distributed import SINGLE_PROCESS, Processes

EVALUATION = ["--extractor", "trained", "--bootstrap", 5, "--num-reference", 20, "--num-inference-steps", 3]
LOST = "ldm: another process of this run ended or did not answer in time\n"
FORKS = multiprocessing.get_context("forkserver")  # of one process that has imported everything
FORKS.set_forkserver_preload(
    [
        *(
            "ldm.cli.sample",
            "ldm.cli.evaluate",
            "ldm.cli.compare",
            "ldm.cli.outputs",
            "ldm.runtime.device",
            "ldm.data.open",
            "ldm.sampling.loading",
            "ldm.evaluation.evaluate",
            "ldm.comparison.compare",
        ),
        *("ldm.training.tasks.diffusion", "transformers.models.clip.modeling_clip"),
    ]
)

COMMAND = """
import os, sys
os.chdir(folder)
os.environ.update(environment)
for number, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(f"{folder}.{environment['RANK']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
from ldm.cli.main import main
from ldm.evaluation.features import extractors as features
from ldm.evaluation.features import judge
from ldm.evaluation.features import train_network
def quickly(data, *, device="cpu"):
    return train_network.trained_network(data, device=device, recipe=train_network.Recipe(steps=8))
features.trained_network = judge.trained_network = quickly
sys.exit(main(arguments))
"""


def start(arguments, folder, count=2, **extra):
    """`ldm` in `count` processes that find each other as those of torchrun do."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LDM_CACHE": os.environ["LDM_CACHE"], **extra}
    found = []
    for rank in range(count):
        environment = {**shared, "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        given = {"arguments": list(map(str, arguments)), "folder": str(folder), "environment": environment}
        found.append(FORKS.Process(target=exec, args=(COMMAND, given)))
        found[-1].start()
    return found


def finish(processes, folder, timeout=900):
    """(exit code, stdout, stderr) of each."""
    try:
        for process in processes:
            process.join(timeout)
        return [
            (process.exitcode, *(Path(f"{folder}.{rank}.{name}").read_text() for name in ("out", "err")))
            for rank, process in enumerate(processes)
        ]
    finally:
        for process in processes:
            process.kill()


def until(there, seconds=900):
    """Wait until `there()` is true."""
    last = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < last, "it never came"
        time.sleep(0.02)


@pytest.fixture
def both(ldm, tmp_path, monkeypatch, quick_networks):
    """What one process and two make of the same arguments, in the folders `one` and `two`."""

    def run(*arguments):
        (tmp_path / "one").mkdir()
        monkeypatch.chdir(tmp_path / "one")
        one = ldm(*arguments)
        assert one.code == 0, one.err
        two = finish(start(arguments, tmp_path / "two"), tmp_path / "two")
        assert [code for code, _, _ in two] == [0, 0], two
        assert two[1][1] == "", "the second prints nothing"
        return one.out, two[0][1]

    return run


def same_files(one, two):
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names and names == sorted(str(path.relative_to(two)) for path in two.rglob("*") if path.is_file())
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    return names


def test_each_process_takes_every_third_batch():
    starts = [list(Processes(rank, 3).batch_starts(50, 8)) for rank in range(3)]
    assert starts == [[0, 24, 48], [8, 32], [16, 40]]
    assert SINGLE_PROCESS.gather(3) == [3] and SINGLE_PROCESS.is_main
    assert list(SINGLE_PROCESS.gather_batches(iter([1, 2]), 2)) == [1, 2]


def test_two_processes_sample_the_same_pictures(models, both, tmp_path):
    what = ["sample", models.text, "--prompt", "a", "--prompt", "a b", "--num-images", 7, "--batch-size", 3]
    one, two = both(*what, "--num-inference-steps", 3, "--device", "cpu", "--output-dir", "out")
    assert len(same_files(tmp_path / "one", tmp_path / "two")) == 9
    assert (
        two.splitlines()[1].split(",")[:2]
        == one.splitlines()[1].split(",")[:2]
        == ["7 images", " 42 network evaluations"]
    )


def test_two_processes_measure_the_same_figures(models, both, tmp_path):
    what = ["evaluate", models.text, "--num-images", 22, "--batch-size", 5, *EVALUATION, "--device", "cpu"]
    one, two = both(*what, "--metrics", "fid", "kid", "inception_score", "--output", "figures.json")
    figures = [json.loads((tmp_path / name / "figures.json").read_text()) for name in ("one", "two")]
    for each in figures:
        assert each.pop("seconds_per_image") > 0
    assert figures[0] == figures[1], "bit for bit"
    assert figures[0]["evaluations_per_image"] == 6 and len(figures[0]["figures"]) > 3
    assert one == two


def test_a_refusal_is_told_once_and_ends_all(models, tmp_path):
    arguments = ["sample", models.text, "--sampler", "ddin", "--output-dir", "out"]
    told = finish(start(arguments, tmp_path / "two"), tmp_path / "two")
    assert [code for code, _, _ in told] == [2, 2]
    assert "ddin" in told[0][2] and told[0][2].count("\n") == 1 and told[1][2] == ""
    assert not list((tmp_path / "two").iterdir())


@pytest.fixture
def endless(models, tmp_path):
    """Two processes in the middle of long sampling."""
    what = ["sample", models.text, "--num-images", 4000, "--batch-size", 4, "--num-inference-steps", 9]
    processes = start([*what, "--device", "cpu", "--output-dir", "out"], tmp_path / "two", LDM_PROCESS_TIMEOUT="20")
    until(lambda: (tmp_path / "two" / "out" / "000008.png").exists())
    yield processes
    for process in processes:
        process.kill()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other(endless, tmp_path, victim):
    os.kill(endless[victim].pid, signal.SIGKILL)
    code, _, words = finish(endless, tmp_path / "two")[1 - victim]
    assert (code, words) == (1, LOST) and not (tmp_path / "two" / "out" / "settings.json").exists()


def test_a_process_that_hangs_does_not_hold_the_other_for_ever(endless, tmp_path):
    os.kill(endless[1].pid, signal.SIGSTOP)
    endless[0].join(900)
    assert endless[0].exitcode == 1 and (tmp_path / "two.0.err").read_text() == LOST


COMPARISON = [
    *("--methods", "none", "cfg", "pag(2)", "--guidance-scales", 2, 4, "--samplers", "ddim", "dpmpp_2m", "--rows", 2),
    *("--num-images", 22, "--batch-size", 5, "--num-inference-steps", 3, *EVALUATION, "--metrics", "fid", "kid"),
    *("--output-dir", "out", "--device", "cpu"),
]


def untimed(folder):
    """comparison.json without times and memory."""
    content = json.loads((folder / "comparison.json").read_text())
    for run in [*content["cells"], *(run for round_ in content["rounds"] for run in round_["cells"])]:
        assert run["result"].pop("seconds_per_image") > 0
        run.pop("peak_memory")
    return content


def images(folder):
    return {path.name: path.read_bytes() for path in [*folder.glob("cells/*.png"), folder / "comparison.png"]}


@pytest.mark.parametrize("rounds", [1, 3])
def test_two_processes_compare_as_one(models, both, tmp_path, rounds):
    one, two = both("compare", models.text, *COMPARISON, "--rounds", rounds)
    folders = [tmp_path / name / "out" for name in ("one", "two")]
    assert untimed(folders[0]) == untimed(folders[1]), "bit for bit"
    assert images(folders[0]) == images(folders[1]) and len(images(folders[0])) == 9
    assert one.splitlines()[-4:] == two.splitlines()[-4:]
    assert ("5 samples of each of 8 runs" in one) == (rounds == 3)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_comparison_killed_half_way_computes_nothing_twice(
    models, ldm, tmp_path, monkeypatch, quick_networks, rounds
):
    what = ["compare", models.text, *COMPARISON, "--rounds", rounds]
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert ldm(*what).code == 0
    processes = start(what, tmp_path / "killed", count=1)
    cells = tmp_path / "killed" / "out" / "cells"
    until(lambda: len(list(cells.glob("*.json"))) >= 4)
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].join()
    assert not (cells.parent / "comparison.json").exists()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in cells.glob("*.json")}
    monkeypatch.chdir(tmp_path / "killed")
    from ldm.sampling.pipeline import Pipeline

    drawn, generate = [], Pipeline.generate

    def counted(self, requests, *arguments, **options):
        drawn.append((arguments[0], range(options["first_index"], options["first_index"] + len(requests))))
        return generate(self, requests, *arguments, **options)

    monkeypatch.setattr(Pipeline, "generate", counted)
    assert ldm(*what).code == 0
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before, "nothing done is redone"
    once = {(str(sampling), number) for sampling, numbers in drawn for number in numbers}
    assert len(once) == sum(len(numbers) for _, numbers in drawn), "no sample is drawn twice"
    assert (
        len({str(sampling) for sampling, numbers in drawn if 0 in numbers}) == 8 - len(list(before)[:8]) or rounds > 1
    )
    folders = [tmp_path / name / "out" for name in ("whole", "killed")]
    assert untimed(folders[0]) == untimed(folders[1]) and images(folders[0]) == images(folders[1])
    drawn.clear()
    assert ldm(*what).code == 0 and not drawn, "what is whole is read"
