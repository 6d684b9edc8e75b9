"""Every long command, killed or stopped at random instants and started again, ends in the same bits."""

import contextlib
import json
import os
import random
import re
import signal
import sys
import time
import traceback

import pytest
import yaml

from ldm.runtime.files import cache_folder

KILLS = 9  # of each command: 63 in all
STEPS = 12  # of each training
DRAW = ["--num-inference-steps", 4, "--sampler", "ddpm", "--device", "cpu"]
DATA = ["--data", "shapes", "--image-size", 16, "--shapes-train", 400, "--shapes-validation", 32, "--device", "cpu"]
KINDS = ("sample", "encode", "evaluate", "compare", "quickstart", "train prior", "train gan")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TIMED = {"seconds", "seconds_per_image", "peak_memory", "images_per_second"}
WITH_TIMES = ("report.html", "comparison.csv", "comparison.txt")  # compared by their presence
DATASET = {"data": "shapes", "image_size": 16, "shapes_train": 64, "shapes_validation": 32}
TRAINING = {"max_train_steps": STEPS, "train_batch_size": 16, "checkpointing_steps": 4, "log_steps": 1}
NETWORK = {
    **{"block_out_channels": [8, 16], "attention": [False, True], "attention_head_dim": 8, "norm_num_groups": 4},
    "layers_per_block": 1,
}
CODER = {"latent_channels": 4, "block_out_channels": [8, 8], "norm_num_groups": 4, "attention": False}
TINY = {
    "autoencoder": {"autoencoder": {**CODER, "sample_size": 16}},
    "diffusion": {
        "unet": NETWORK,
        "conditioning": {"text_width": 16, "text_layers": 1, "text_heads": 2},
        "preview_images": 0,
    },
    "classifier": {"classifier": NETWORK},
}


def child_of(arguments, folder, errors):
    """The command in a forked process in this folder, which needs no new start of Python; stderr goes to a file."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.chdir(folder)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (not pytest's, to the end of the process)
        sys.stderr = open(errors, "w", buffering=1)  # noqa: SIM115
        from ldm.cli.main import main

        code = main([str(argument) for argument in arguments])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def untimed(value):
    """JSON without what depends on the clock."""
    if isinstance(value, dict):
        return {name: untimed(entry) for name, entry in value.items() if name not in TIMED}
    return [untimed(entry) for entry in value] if isinstance(value, list) else value


def content(root):
    """Every file below the root, as bits, without times; of the checkpoints the last, for a stop saves one more."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if (step := re.search(r"checkpoint-(\d+)", name)) and step[1] != str(STEPS):
            continue
        checksums = path.name == "manifest.json" and path.parent.name.startswith("checkpoint-")  # of times, too
        if not path.is_file() or path.name in WITH_TIMES or checksums:
            found[name] = path.is_file()
        elif path.suffix in (".json", ".jsonl"):
            lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
            found[name] = [untimed(json.loads(line)) for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


def leftovers(*folders):
    """What is temporary or locked."""
    paths = [path for folder in folders for path in folder.rglob(".*")]
    return {path for path in paths if ".tmp-" in path.name or ".old-" in path.name or path.name == ".lock"}


@pytest.fixture
def commands(models, tmp_path, monkeypatch):
    """The command of a kind into a folder, with all that it needs made."""
    from ldm.cli import quickstart

    for kind, settings in TINY.items():
        content = {"dataset": DATASET, "validation_images": 16, **settings, "training": TRAINING}
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(quickstart, "find_config", lambda name: tmp_path / f"{name.rpartition('/')[2]}.yaml")
    monkeypatch.setattr(quickstart, "_COMPARED", 12)
    saving = ["--checkpointing-steps", 3, "--checkpoints-total-limit", 2, "--validation-steps", 5]

    def prior():
        codes = models.command("autoencoder", tmp_path / "vq", "--bottleneck", "vq", "--num-codes", 16, steps=1)
        assert os.waitpid(child_of(codes, tmp_path, os.devnull), 0)[1] == 0
        shared = models.command("gan", "out")[2:]
        shared = shared[: shared.index("--block-out-channels")]
        network = ["--width", 16, "--layers", 2, "--text-width", 16, "--text-layers", 1, "--text-heads", 2]
        places = ["--autoencoder", tmp_path / "vq", "--max-train-steps", STEPS, "--output-dir", "out"]
        return ["train", "prior", *shared, *saving, *network, "--preview-images", 2, *places]

    few = ["--num-images", 40, "--batch-size", 4, "--extractor", "trained", "--bootstrap", 5]
    return {
        "sample": lambda: [
            *("sample", models.text, *DRAW, "--num-images", 60, "--batch-size", 4, "--guidance-scale", 2),
            *("--prompt", "a red circle", "--prompt", "a star", "--output-dir", "out"),
        ],
        "encode": lambda: [
            *("encode", "--autoencoder", models.autoencoder, *DATA, "--batch-size", 8, "--output-dir", "out"),
        ],
        "evaluate": lambda: [
            *("evaluate", models.text, *DRAW, *few, "--metrics", "fid", "kid", "memorisation"),
            *("--output", "out/figures.json"),
        ],
        "compare": lambda: [
            *("compare", models.text, *DRAW, *few, "--methods", "none", "cfg", "pag(2)", "--guidance-scales", 2, 4),
            *("--rows", 2, "--metrics", "fid", "kid", "--output-dir", "out"),
        ],
        "quickstart": lambda: [
            *("quickstart", "--num-images", 6, "--num-inference-steps", 2, "--device", "cpu", "--output-dir", "out"),
        ],
        "train prior": prior,
        "train gan": lambda: models.command(
            "gan", "out", "--objective", "wgan_gp", "--discriminator-rounds", 2, *saving, steps=STEPS
        ),
    }


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_instants(kind, commands, tmp_path, monkeypatch):
    from ldm.data import latent_layout

    monkeypatch.setattr(latent_layout, "SHARD_EXAMPLES", 40)
    errors, draws, command = tmp_path / "errors", random.Random(f"instants of {kind}"), commands[kind]()
    for name in ("whole", "timed"):  # the second start finds what is cached, and shows the time of the rest
        (tmp_path / name).mkdir()
        begin = time.monotonic()
        assert os.waitpid(child_of(command, tmp_path / name, errors), 0)[1] == 0, errors.read_text()
    took, expected = time.monotonic() - begin, content(tmp_path / "whole")
    assert content(tmp_path / "timed") == expected, "a command without kills has the same bits twice"
    kills, rounds = dict.fromkeys(SIGNALS, 0), 0
    while sum(kills.values()) < KILLS:
        rounds += 1
        folder = tmp_path / f"parts{rounds}"
        folder.mkdir()
        while True:
            number, before = SIGNALS[sum(kills.values()) % 3], leftovers(folder, cache_folder())  # of a SIGKILL
            child = child_of(command, folder, errors)
            time.sleep(took * draws.uniform(0.02, 0.7))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            status = os.waitpid(child, 0)[1]
            said = errors.read_text()
            assert "Traceback" not in said, said
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                break
            kills[number] += 1
            if number == signal.SIGKILL:
                assert os.WIFSIGNALED(status)
                continue
            assert os.WEXITSTATUS(status) == 128 + number, said
            assert said.splitlines()[-1:] and said.splitlines()[-1].startswith("ldm: stopped"), said
            assert leftovers(folder, cache_folder()) <= before, said
        assert not leftovers(folder, cache_folder())
        assert not list((cache_folder() / "evaluations").glob("*"))
        found = content(folder)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
    print(f"{kind}: {', '.join(f'{count} {number.name}' for number, count in kills.items())}, {rounds} folders")
