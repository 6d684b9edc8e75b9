"""A training that was killed or stopped, and started again, ends with the same bits as one that was left alone."""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from ldm.training.checkpoint import damage

STEPS = 12
EVERY = ["--checkpointing-steps", 3, "--checkpoints-total-limit", 2, "--validation-steps", 5]
CASES = {
    "kl": ("autoencoder", ["--gradient-accumulation-steps", 2]),
    "vq": ("autoencoder", ["--bottleneck", "vq", "--num-codes", 16, "--revive-after", 2]),
    "bn": ("autoencoder", ["--bottleneck", "bn", "--mask-probability", 0.2]),
    "vqvae2": (
        "autoencoder",
        [
            "--bottleneck",
            "vqvae2",
            "--num-codes",
            16,
            "--code-width",
            8,
            "--codebook-init",
            "data",
            "--revive-after",
            2,
        ],
    ),
    "nvae": ("autoencoder", ["--coder", "vit", "--bottleneck", "nvae", "--group-width", 8, "--patch-size", 4]),
    "gumbel": ("autoencoder", ["--bottleneck", "gumbel", "--num-codes", 16, "--temperature-steps", 10]),
    "vqgan": (
        "autoencoder",
        [
            "--bottleneck",
            "vq",
            "--num-codes",
            16,
            "--adversarial-weight",
            0.5,
            "--discriminator-start",
            4,
            "--discriminator-warmup",
            2,
            "--adversarial-ramp",
            3,
            "--discriminator-width",
            4,
            "--discriminator-layers",
            2,
            "--spectral-norm",
            "--r1-weight",
            1,
            "--r1-every",
            3,
            "--gradient-accumulation-steps",
            2,
            "--validation-rfid",
            "--lr-scheduler",
            "linear",
        ],
    ),
    "gan": ("gan", ["--objective", "wgan_gp", "--discriminator", "residual", "--discriminator-rounds", 2]),
    "text": ("diffusion", ["--lr-scheduler", "cosine", "--lr-warmup-steps", 4, "--preview-images", 2]),
    "muon": ("diffusion", ["--optimizer", "muon", "--validation-images", 8]),
    "classifier": ("classifier", ["--dropout", 0.2, "--adam-weight-decay", 0.05]),
}


def losses(folder):
    """By step, and the steps as they stand in the file."""
    text = (folder / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    steps = [entry for entry in lines if "gradient_norm" in entry]  # of a GAN, some without a loss of the generator
    return {entry["step"]: entry.get("loss", entry.get("discriminator_loss")) for entry in steps}, [
        entry["step"] for entry in steps
    ]


def state(folder):
    """All bits of the last checkpoint, and of the published models."""
    last = folder / f"checkpoint-{STEPS}"
    found = {path.name: load_file(path) for path in last.glob("*.safetensors")}
    players = {"opponent.safetensors", "opponent_optimizer.safetensors"}
    assert found.keys() - players == {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    bits = {
        f"{file}/{name}": value.numpy().tobytes() for file, tensors in found.items() for name, value in tensors.items()
    }
    for part in ("vae", "best/vae", "unet", "classifier", "text_encoder", "generator"):
        for path in (folder / part).glob("*.safetensors"):
            bits[f"{part}/{path.name}"] = path.read_bytes()
    return bits


def started(arguments):
    """The command in a child process of its own, which needs no new start of Python; its process id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        from ldm.cli.main import main

        code = main([str(argument) for argument in arguments])
    finally:
        os._exit(code)


def interrupted(arguments, folder, number, after):
    """Start the command and send it a signal once step `after` is logged; its wait status."""
    child = started(arguments)
    deadline = time.monotonic() + 900
    while not (folder / "metrics.jsonl").exists() or after not in losses(folder)[0]:
        assert time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0), "ended too early"
        time.sleep(0.002)
    os.kill(child, number)
    return os.waitpid(child, 0)[1]


@pytest.fixture
def command(models):
    def build(case, folder, *more):
        kind, flags = CASES[case]
        return models.command(kind, folder, *flags, *EVERY, *more, steps=STEPS)

    return build


@pytest.mark.usefixtures("quick_networks")
@pytest.mark.parametrize("case", CASES)
def test_killed_and_started_again(case, command, ldm, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert ldm(*command(case, whole)).code == 0
    more = ["--dataloader-num-workers", 2] if case == "vq" else []  # the number of workers changes nothing
    for after in (2, 7):  # before the first checkpoint, and between two
        status = interrupted(command(case, parts, *more), parts, signal.SIGKILL, after)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert whole_checkpoints(parts) or after == 2
    found = ldm(*command(case, parts, *more))
    assert found.code == 0, found.err
    again, expected = state(parts), state(whole)
    assert again.keys() == expected.keys()
    assert [name for name in expected if again[name] != expected[name]] == []
    assert entries(parts) == entries(whole)
    assert losses(parts)[1] == list(range(1, STEPS + 1)), "each step once"
    assert sorted(path.name for path in parts.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-9"]
    if case == "vqgan":
        assert json.loads((parts / "best" / "best.json").read_text()) == json.loads(
            (whole / "best" / "best.json").read_text()
        )
    assert not list(parts.glob(".*tmp*")) + list(parts.glob("samples/.*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_saves_and_goes_on(number, command, ldm, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert ldm(*command("kl", whole)).code == 0
    status = interrupted(command("kl", parts, "--checkpointing-steps", 100), parts, number, 4)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 128 + number
    (checkpoint,) = parts.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert losses(parts)[1] == list(range(1, step + 1)) and 4 <= step < STEPS
    assert ldm(*command("kl", parts)).code == 0
    assert state(parts) == state(whole)
    assert losses(parts) == losses(whole)


def test_looking_changes_nothing(command, ldm, tmp_path):
    """Validation, previews and their number of pictures leave the weights alone, with EMA and without."""
    for ema in (0.9, 0):
        often, never = tmp_path / f"often{ema}", tmp_path / f"never{ema}"
        looks = ["--validation-steps", 3, "--preview-images", 3, "--checkpointing-steps", 5, "--ema-decay", ema]
        assert ldm(*command("text", often, *looks)).code == 0
        rarely = ["--validation-steps", 0, "--preview-images", 0, "--checkpointing-steps", 100, "--ema-decay", ema]
        assert ldm(*command("text", never, *rarely)).code == 0
        for file in ("model", "optimizer"):
            a, b = (load_file(run / f"checkpoint-{STEPS}" / f"{file}.safetensors") for run in (often, never))
            assert all(a[name].equal(b[name]) for name in a) and a.keys() == b.keys()
        assert len(list((often / "samples").glob("*.png"))) == STEPS / 3 and not (never / "samples").exists()


def test_a_diffusion_step_is_the_same_in_pieces(command, ldm, tmp_path):
    """Times, noise and dropped conditions belong to the example, not to the piece of the batch that it is in."""
    for pieces in (1, 4):
        folder = tmp_path / str(pieces)
        assert ldm(*command("text", folder, "--gradient-accumulation-steps", pieces)).code == 0
    one, four = (losses(tmp_path / name)[0] for name in ("1", "4"))
    assert max(abs(one[step] - four[step]) for step in one) < 1e-4


def test_an_averaged_codebook_is_published(models, ldm, tmp_path):
    """An EMA codebook moves without a gradient; the published average of the weights must have it."""
    assert ldm(*models.command("autoencoder", tmp_path, *CASES["vq"][1], steps=8)).code == 0
    last = {file: load_file(tmp_path / "checkpoint-8" / f"{file}.safetensors") for file in ("model", "ema")}
    name = "quantize.embedding.weight"
    assert last["ema"][name].equal(last["model"][name])
    assert load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")[name].equal(last["model"][name])


TRAININGS = {
    "autoencoder": (CASES["vqgan"][1], []),  # settings; what looks at the training beside validation
    "diffusion": (
        ["--lr-scheduler", "cosine", "--lr-warmup-steps", 4],
        ["--eval-every", 5, "--eval-num-images", 8, "--eval-num-inference-steps", 2, "--preview-images", 2],
    ),
    "classifier": (["--dropout", 0.2], []),
    "prior": (
        ["--width", 16, "--layers", 2, "--text-width", 16, "--text-layers", 1, "--text-heads", 2],
        ["--preview-images", 2],
    ),
    "gan": (["--objective", "wgan_gp", "--discriminator-rounds", 2, "--normalization", "batch"], ["--validation-fid"]),
}


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """A file into which all trainings from now on write the digest of each batch, with its step and its piece."""
    from ldm.training.tasks import autoencoder, classifier, diffusion, gan, images, prior

    file = tmp_path / "seen"

    def digest(value):
        if isinstance(value, torch.Tensor):
            return hashlib.sha256(value.numpy().tobytes()).hexdigest()
        if dataclasses.is_dataclass(value):
            return [digest(getattr(value, each.name)) for each in dataclasses.fields(value)]
        return [digest(each) for each in value] if isinstance(value, list | tuple) else value

    def watch(task, place):
        real = task.loss

        def loss(self, *arguments):
            batch, random = arguments[place], arguments[-1]
            with open(file, "a") as stream:
                stream.write(json.dumps([random.step, random.micro, digest(batch)]) + "\n")
            return real(self, *arguments)

        monkeypatch.setattr(task, "loss", loss)

    for task in (
        autoencoder.AutoencoderTask,
        classifier.ClassifierTask,
        diffusion.DiffusionTask,
        gan.GanTask,
        prior.PriorTask,
    ):
        watch(task, 1)
    watch(images.Discriminator, 0)
    return file


def batches_of(file):
    """By step and piece, which must have been the same each time that they were seen; the file is emptied."""
    found = {}
    for line in file.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # half a line of a killed process
            step, micro, batch = json.loads(line)
            assert found.setdefault((step, micro), batch) == batch
    file.unlink()
    return found


def entries(folder):
    """All that metrics.jsonl says, but for the speed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def whole_checkpoints(folder):
    return [path.name for path in folder.glob("checkpoint-*") if damage(path) is None]


def lived(child, life, draws, folder, saved):
    """Whether a training came to its end before it was killed, after so many seconds.

    It is held at others on the way: each might have been the last, and shows a whole checkpoint once there was one.
    """
    end = time.monotonic() + life
    while True:
        os.kill(child, signal.SIGKILL if time.monotonic() >= end else signal.SIGSTOP)
        status = os.waitpid(child, os.WUNTRACED)[1]
        found = whole_checkpoints(folder)
        assert found or not saved
        saved.update(found)
        if not os.WIFSTOPPED(status):
            break
        os.kill(child, signal.SIGCONT)
        time.sleep(life * draws.uniform(0, 0.2))
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
@pytest.mark.parametrize(
    ("workers", "accumulation", "looks"), [(0, 1, True), (0, 4, False), (2, 1, False), (2, 4, True)]
)
@pytest.mark.parametrize("kind", TRAININGS)
def test_killed_at_random_instants_until_done(models, seen, tmp_path, kind, workers, accumulation, looks):
    """Twenty trainings, each killed with -9 again and again, held at random instants on the way."""
    settings, more = TRAININGS[kind]
    more = ["--validation-steps", 5, *more] if looks else ["--validation-steps", 0]
    if kind in ("diffusion", "prior") and not looks:
        more += ["--preview-images", 0]
    flags = [*settings, *EVERY, *more, "--gradient-accumulation-steps", accumulation]
    flags = [flag for flag in flags if flag != "--validation-rfid" or looks]

    def command(folder, *own):
        if kind != "prior":
            return models.command(kind, folder, *flags, *own, steps=STEPS)
        shared = models.command("gan", folder)[2:]
        shared = shared[: shared.index("--block-out-channels")]
        places = ["--autoencoder", tmp_path / "vq", "--max-train-steps", STEPS, "--output-dir", folder]
        return ["train", "prior", *shared, *flags, *own, *places]

    if kind == "prior":
        codes = models.command("autoencoder", tmp_path / "vq", "--bottleneck", "vq", "--num-codes", 16, steps=1)
        assert os.waitpid(started(codes), 0)[1] == 0
        seen.unlink()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    begin = time.monotonic()
    assert os.waitpid(started(command(whole)), 0)[1] == 0
    took, expected = time.monotonic() - begin, batches_of(seen)
    assert expected.keys() == {(step, micro) for step in range(STEPS) for micro in range(accumulation)}

    draws, kills = random.Random(f"{kind} {workers} {accumulation} {looks}"), 0
    saved: set[str] = set()
    again = command(parts, "--dataloader-num-workers", workers)
    while not lived(started(again), took * draws.uniform(0.03, 0.15 + 0.05 * kills), draws, parts, saved):
        kills += 1
    assert kills >= 2
    assert state(parts).keys() == state(whole).keys()
    assert [name for name, bits in state(whole).items() if state(parts)[name] != bits] == []
    assert entries(parts) == entries(whole)
    assert losses(parts)[1] == list(range(1, STEPS + 1)), "each step once"
    assert batches_of(seen) == expected
    assert not list(parts.glob(".*tmp*")) + list(parts.glob("samples/.*"))
