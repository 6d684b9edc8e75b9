"""Several processes train what one does: the same weights, the same log; they stop together, and one alone writes."""

import json
import math
import os
import shutil
import signal
import socket
import sys
import time
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

STABLE = ["--learning-rate", 1e-4, "--adam-epsilon", 1e-4, "--lr-warmup-steps", 2, "--lr-scheduler", "cosine"]
"""A gradient that is zero but for rounding (of the bias of attention's keys) must not become a step of full length."""
TEXT = ["--text-width", 16, "--text-layers", 1, "--text-heads", 2, "--preview-images", 0]
KINDS = {
    "autoencoder": [
        "--bottleneck", "vq", "--num-codes", 16, "--revive-after", 2, "--adversarial-weight", 0.5,
        "--discriminator-start", 2, "--discriminator-warmup", 1, "--discriminator-width", 4,
        "--discriminator-layers", 2, "--spectral-norm", "--r1-weight", 1, "--r1-every", 3,
        "--gradient-accumulation-steps", 2,
    ],
    "lfq": ["--bottleneck", "lfq"],
    "nvae": ["--coder", "vit", "--bottleneck", "nvae", "--group-width", 8, "--patch-size", 4],
    "diffusion": ["--preview-images", 0],
    "classifier": [],
    "prior": ["--width", 16, "--layers", 2],
    "gan": ["--normalization", "batch", "--discriminator-rounds", 2],
}  # fmt: skip


def in_float64():
    """The same code one precision up: what is drawn in float32 keeps its value, what is computed has 16 digits."""
    import ldm.data.selection
    from ldm.training.randomness import StepRandom
    from ldm.training.state import TrainingState
    from ldm.training.tasks import images, latents, prior

    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    to_device = ldm.data.selection.to_device
    for module in (ldm.data.selection, images, latents, prior):
        assert module.to_device is to_device
        module.to_device = lambda batch, device: to_device(batch, device).double()
    for name in ("normal", "uniform"):
        draw = getattr(StepRandom, name)
        setattr(StepRandom, name, lambda *arguments, draw=draw: draw(*arguments).double())
    begin = TrainingState.__init__

    def begin_in_float64(self, task, *rest):
        for part in (task.model, getattr(task, "autoencoder", None), task.adversary):
            getattr(part, "model", part).double() if part is not None else None
        begin(self, task, *rest)

    TrainingState.__init__ = begin_in_float64


def forbid_writing(folder):
    """From now on this process ends with 98 when it opens, makes, moves or removes something below `folder`."""

    def watch(event, arguments):
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
        if event == "open" and isinstance(arguments[2], int):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and str(folder) in os.fsdecode(arguments[0] if not isinstance(arguments[0], int) else b""):
            os.write(2, f"{event} {arguments}\n".encode())
            os._exit(98)

    sys.addaudithook(watch)


@pytest.fixture
def started(tmp_path):
    """`started(arguments, processes)`: the command in child processes that find each other; their ids, first the main.

    What they print is in tmp_path/out-<rank>. Those that are left at the end are killed.
    """
    children = []

    def start(arguments, processes, *, prepare=lambda rank: None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        found = []
        for rank in range(processes):
            child = os.fork()
            if not child:
                _be(rank, processes, port, tmp_path / f"out-{rank}", arguments, prepare)
            found.append(child)
        children.extend(found)
        return found

    yield start
    for child in children:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def _be(rank, processes, port, out, arguments, prepare):
    code = 99
    try:
        stream = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1), os.dup2(stream, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        if processes > 1:  # what torchrun and accelerate launch tell their children
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in place.items()})
        from ldm.cli.main import main

        prepare(rank)
        code = main([str(argument) for argument in arguments])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def codes(children, seconds=900):
    """Exit codes, negative for signals; fails if they take longer than so many seconds."""
    found, deadline = {}, time.monotonic() + seconds
    while len(found) < len(children):
        for child in children:
            if child not in found:
                ended, status = os.waitpid(child, os.WNOHANG)
                found |= {child: os.waitstatus_to_exitcode(status)} if ended else {}
        assert time.monotonic() < deadline, f"still running after {seconds} s"
        time.sleep(0.01)
    return [found[child] for child in children]


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def validations(run):
    """Every number of every validation, in order."""
    found = [entry["validation"] for entry in lines(run) if "validation" in entry]
    return [value for measures in found for value in measures.values() if isinstance(value, float)]


def differences(one, two, step):
    """The largest difference of a tensor of the checkpoints, relative to its largest entry where that is above 1."""
    found = {}
    for path in (one / f"checkpoint-{step}").glob("*.safetensors"):
        theirs = load_file(two / f"checkpoint-{step}" / path.name)
        for name, value in load_file(path).items():
            far = (value.double() - theirs[name].double()).abs().max() / value.double().abs().max().clamp_min(1)
            found[f"{path.stem}/{name}"] = float(far)
    return found


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    """An autoencoder of codes, and folders for latents and codes that all runs of a kind share."""
    from ldm.cli.main import main

    root = tmp_path_factory.mktemp("shared")
    assert main(models.command("autoencoder", root / "vq", "--bottleneck", "vq", "--num-codes", 16, steps=1)) == 0
    return root


def command(models, folders, kind, run, steps):
    """Runs beside each other share their latents, the first of them makes them."""
    flags = [*KINDS[kind], *STABLE, "--shapes-train", 41, "--shapes-validation", 17, "--max-train-steps", steps]
    if kind == "prior":
        shared = [flag for flag in models.command("gan", run)[2:] if flag != "--output-dir"]
        start = shared.index("--block-out-channels")
        own = ["--autoencoder", folders / "vq", "--codes", run.parent / "codes", *TEXT]
        return ["train", "prior", *shared[:start], *own, *flags, "--output-dir", run]
    latents = ["--latents", run.parent / "latents"] if kind in ("diffusion", "classifier") else []
    known = kind if kind in ("diffusion", "classifier", "gan") else "autoencoder"
    # the manifest of the model that a classifier is for holds its weights in float32, some of these runs are in float64
    latents += ["--ignore-manifest"] if kind == "classifier" else []
    return models.command(known, run, *latents, *flags, steps=steps)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "digits", "steps"),
    [
        *((kind, "float64", 4) for kind in ("autoencoder", "diffusion", "classifier", "prior")),
        *(pytest.param(kind, digits, 50, marks=slow) for kind in KINDS for digits in ("float64", "float32")),
    ],
)
def test_two_processes_train_as_one(models, folders, started, tmp_path, kind, digits, steps):
    """41 images in batches of 16, so that batches run over the ends of epochs; 17 for validation.

    In float32 the optimiser's moments are held to less than the weights: where rounding decides on which side of a kink
    (of a hinge loss, of a leaky ReLU) a number lies, a gradient jumps, and the weights follow at the learning rate.
    """
    runs = [tmp_path / "one", tmp_path / "two"]

    def prepare(rank):
        if rank:
            forbid_writing(tmp_path / "two")
        if digits == "float64":
            in_float64()

    for processes, run in enumerate(runs, start=1):
        arguments = command(models, folders, kind, run, steps)
        exit_codes = codes(started(arguments, processes, prepare=prepare))
        assert exit_codes == [0] * processes, [(tmp_path / f"out-{rank}").read_text() for rank in range(processes)]
    allowed = 1e-12 if digits == "float64" else 1e-5
    far = differences(*runs, steps)
    loose = 100 if digits == "float32" else 1
    limits = {name: allowed * (loose if "optimizer/" in name else 1) for name in far}
    assert {name: value for name, value in far.items() if not value <= limits[name]} == {}
    alone, together = ([entry for entry in lines(run) if "gradient_norm" in entry] for run in runs)
    assert [entry["step"] for entry in together] == list(range(1, steps + 1))
    for a, b in zip(alone, together, strict=True):
        assert a.keys() == b.keys() and a["learning_rate"] == b["learning_rate"]
        for name in a.keys() - {"images_per_second"}:
            assert b[name] == pytest.approx(a[name], rel=100 * allowed, abs=100 * allowed), (a["step"], name)


@pytest.mark.parametrize(
    "kind", [pytest.param("diffusion", marks=slow), "classifier", pytest.param("prior", marks=slow)]
)
def test_shards_of_two_processes_train_as_one(models, folders, started, tmp_path, kind):
    """Each has about half of every tensor; the files are those of one process, exactly resumed, by either of them."""

    def prepare(rank, processes=2):
        from ldm.training import loop

        if rank:
            forbid_writing(tmp_path / "two")
        in_float64()
        if kind == "classifier" and processes == 2:
            os.environ["ACCELERATE_USE_FSDP"] = "true"
        run = loop.TrainingLoop.run

        def counted(self):
            weights = self.state.optimizer.param_groups[0]["params"]
            parts = [getattr(p, "to_local", lambda p=p: p)().numel() for p in weights]
            print("weights", sum(parts), sum(p.numel() for p in weights))
            return run(self)

        loop.TrainingLoop.run = counted

    runs = [tmp_path / "one", tmp_path / "two"]
    every = ["--checkpointing-steps", 2, "--checkpoints-total-limit", 9, "--validation-steps", 2]
    every += ["--validation-images", 4]
    alone, together = ([*command(models, folders, kind, run, 5), *every] for run in runs)
    together += [] if kind == "classifier" else ["--fsdp"]
    assert codes(started(alone, 1, prepare=lambda rank: prepare(rank, 1))) == [0], (tmp_path / "out-0").read_text()
    assert codes(started(together, 2, prepare=prepare)) == [0, 0], (tmp_path / "out-0").read_text()
    for rank in range(2):
        here, everywhere = map(int, (tmp_path / f"out-{rank}").read_text().split("weights ")[1].split()[:2])
        assert 0.3 < here / everywhere < 0.7
    assert max(differences(*runs, 5).values()) <= 1e-12
    assert validations(runs[1]) == pytest.approx(validations(runs[0]), rel=1e-6)
    files = {path.name: path.read_bytes() for path in (runs[1] / "checkpoint-5").glob("*.safetensors")}
    for processes in (2, 1) if kind != "classifier" else (2,):
        for step in (4, 5):
            shutil.rmtree(runs[1] / f"checkpoint-{step}")
        again = [flag for flag in together if flag != "--fsdp" or processes == 2]
        ready = partial(prepare, processes=processes)
        assert codes(started(again, processes, prepare=ready)) == [0] * processes, (tmp_path / "out-0").read_text()
        found = {path.name: path.read_bytes() for path in (runs[1] / "checkpoint-5").glob("*.safetensors")}
        assert found == files if processes == 2 else max(differences(*runs, 5).values()) <= 1e-12


def test_a_batch_that_three_processes_cannot_share_is_refused_before_anything_is_made(
    models, folders, started, tmp_path
):
    run = tmp_path / "run"
    assert codes(started(command(models, folders, "autoencoder", run, 3), 3)) == [2, 2, 2]
    for rank in range(3):
        line = (tmp_path / f"out-{rank}").read_text().splitlines()[-1]  # the first process says what was read before
        assert "--train-batch-size: batch size 16 is not divisible by processes x accumulation = 3 x 2" in line
    assert not run.exists()


def until_step(run, step, children):
    deadline = time.monotonic() + 900
    while not (run / "metrics.jsonl").exists() or f'"step": {step},' not in (run / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline and os.waitpid(children[0], os.WNOHANG) == (0, 0), "ended too early"
        time.sleep(0.005)


@pytest.mark.parametrize("killed", [pytest.param(0, marks=slow), 1])
def test_a_process_that_dies_ends_the_other_and_the_run_goes_on(models, folders, started, tmp_path, killed):
    runs = [tmp_path / "one", tmp_path / "two"]
    endless = [*command(models, folders, "classifier", runs[1], 100_000), "--checkpointing-steps", 5]
    endless += ["--lr-scheduler", "constant"]
    children = started(endless, 2)
    until_step(runs[1], 12, children)
    os.kill(children[killed], signal.SIGKILL)
    exit_codes = codes(children)
    said = (tmp_path / f"out-{1 - killed}").read_text()
    assert exit_codes[killed] == -signal.SIGKILL and exit_codes[1 - killed] == 1, said
    assert (
        said.splitlines()[-1].startswith("ldm: another process of this training has ended") and "Traceback" not in said
    )
    step = max(int(path.name.split("-")[1]) for path in runs[1].glob("checkpoint-*"))
    for run in runs:
        again = [*command(models, folders, "classifier", run, step + 3), "--lr-scheduler", "constant"]
        assert codes(started(again, 1)) == [0]
    assert max(differences(*runs, step + 3).values()) < 1e-6


def test_a_signal_to_one_process_saves_and_ends_all_at_the_same_step(models, folders, started, tmp_path):
    run = tmp_path / "run"
    endless = [*command(models, folders, "classifier", run, 100_000), "--checkpointing-steps", 100_000]
    children = started(endless, 2)
    until_step(run, 3, children)
    os.kill(children[1], signal.SIGTERM)
    assert codes(children) == [128 + signal.SIGTERM] * 2
    (checkpoint,) = run.glob("checkpoint-*")
    assert lines(run)[-1]["step"] == int(checkpoint.name.split("-")[1])


@pytest.mark.parametrize("limit", [0, 1])
def test_a_bad_example_on_one_process_is_left_out_or_stops_all(models, folders, started, tmp_path, limit):
    def prepare(rank):
        from ldm.training.tasks import images

        real = images.image_batches

        def batches(data, plan, workers):
            for batch in real(data, plan, workers):
                batch.images[batch.indices == 5] = math.nan  # each time that its turn comes
                yield batch

        images.image_batches = batches

    runs = [tmp_path / "one", tmp_path / "two"]
    for processes, run in enumerate(runs, start=1):
        arguments = [*command(models, folders, "lfq", run, 8), "--skip-non-finite", limit]
        exit_codes = codes(started(arguments, processes, prepare=prepare))
        said = [(tmp_path / f"out-{rank}").read_text() for rank in range(processes)]
        assert exit_codes == [0 if limit else 1] * processes, said
    alone, together = ([entry for entry in lines(run) if "gradient_norm" in entry] for run in runs)
    bad = [entry["step"] for entry in alone if "not_finite" in entry]
    assert bad and [entry["step"] for entry in together if "not_finite" in entry] == bad
    assert all(5 in entry["examples"] for entry in together if "not_finite" in entry)
    assert limit or all(f"step {bad[0]}: not finite" in each for each in said)
    if limit:
        assert len(bad) < 8 and max(differences(*runs, 8).values()) < 1e-5


def test_processes_without_a_shared_folder_are_told(models, folders, started, tmp_path):
    from ldm.training.processes import check_same_checkpoint

    def prepare(rank):
        from ldm.training import state

        state.check_same_checkpoint = lambda name, processes: check_same_checkpoint(f"checkpoint-{rank}", processes)

    children = started(command(models, folders, "classifier", tmp_path / "run", 3), 2, prepare=prepare)
    assert codes(children) == [2, 2]
    said = (tmp_path / "out-0").read_text().splitlines()[-1]
    assert "checkpoint-0 on process 0, checkpoint-1 on process 1" in said and "all machines must share" in said


def test_two_processes_encode_what_one_does_and_go_on_where_one_died(models, started, tmp_path, monkeypatch):
    from ldm.data.latent_layout import Layout

    monkeypatch.setattr(Layout, "per_shard", property(lambda layout: 16))
    data = ["--data", "shapes", "--image-size", 16, "--shapes-train", 90, "--device", "cpu"]

    def encode(folder):
        return ["encode", *data, "--autoencoder", models.autoencoder, "--output-dir", tmp_path / folder]

    def dies_at_its_second_shard(rank):
        from ldm.data import latent_cache

        real, written = latent_cache.save_tensors, []

        def write(path, *content):
            if rank == 1 and written:
                os.kill(os.getpid(), signal.SIGKILL)
            written.append(path)
            real(path, *content)

        latent_cache.save_tensors = write

    assert codes(started(encode("one"), 1)) == [0]
    assert codes(started(encode("two"), 2, prepare=dies_at_its_second_shard)) == [1, -signal.SIGKILL]
    assert "another process of this run" in (tmp_path / "out-0").read_text()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").glob("latents-*.safetensors")}
    assert 0 < len(kept) < 6 and not (tmp_path / "two" / "manifest.json").exists()
    assert codes(started(encode("two"), 2)) == [0, 0]
    for path in (tmp_path / "one").glob("latents-*.safetensors"):  # the order of their headers is not always the same
        alone, together = load_file(path), load_file(tmp_path / "two" / path.name)
        assert alone.keys() == together.keys() and all(alone[name].equal(together[name]) for name in alone)
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("one", "two")]
    assert len(names[0]) == 7 and names[0] == names[1]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "whole shards stay"


@pytest.mark.usefixtures("quick_networks")
def test_samples_are_measured_together(started, models, tmp_path):
    """Each process draws its share of an evaluation; the first alone writes, and what it writes is the same."""
    looks = ["--eval-every", 2, "--eval-num-images", 12, "--eval-batch-size", 5, "--eval-num-inference-steps", 2]
    flags = [*TEXT, *STABLE, *looks, "--eval-metrics", "fid", "--max-train-steps", 4]
    for count in (1, 2):
        run = tmp_path / str(count)
        children = started(
            models.command("diffusion", run, *flags), count, prepare=lambda rank, run=run: rank and forbid_writing(run)
        )
        assert codes(children) == [0] * count, [(tmp_path / f"out-{rank}").read_text() for rank in range(count)]
    one, two = (
        {line["step"]: line["evaluation"] for line in lines(tmp_path / count) if "evaluation" in line}
        for count in ("1", "2")
    )
    assert list(one) == list(two) == [2, 4]
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=1e-3), "the weights differ by rounding"
    best = [json.loads((tmp_path / count / "best" / "best.json").read_text())["step"] for count in ("1", "2")]
    assert best[0] == best[1]


def test_a_run_of_other_settings_ends_all_with_one_line(models, started, tmp_path):
    assert codes(started(models.command("diffusion", models.text, "--learning-rate", 0.5, steps=60), 2)) == [2, 2]
    said = [(tmp_path / f"out-{rank}").read_text() for rank in range(2)]
    refusals = [line for line in said[0].splitlines() if line.startswith("ldm: ")]
    assert len(refusals) == 1 and "training.learning_rate was 0.01, is 0.5" in refusals[0] and said[1] == ""
