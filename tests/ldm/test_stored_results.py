"""What is stored to be used again is whole, or is named and made again: a file that exists may still be damaged."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm.comparison.folder import load_record
from ldm.data.packed import Sample, read_index, write_index
from ldm.data.report import NOTHING_PASSED_OVER
from ldm.evaluation.features.archive import save_archive
from ldm.evaluation.features.feature_cache import _read
from ldm.evaluation.sample_stats import SampleStats, load_stats, save_stats
from ldm.runtime.errors import UserError
from ldm.runtime.tensors import metadata_text, save_with_digest
from ldm.training.averages import PowerAverages, reconstruct
from ldm.training.config import AveragesConfig


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def index(path):
    write_index(path, [Sample("a.png", 0, 10, 1, ("one",))], ("zero", "one"), NOTHING_PASSED_OVER)
    return lambda: read_index(path)


def record(path):
    path.write_text(json.dumps({"label": "cfg"}))
    return lambda: load_record(path, lambda content: content["label"])


def stats(path):
    save_stats(path, SampleStats(2, torch.ones(2, 3), torch.ones(2, 3), torch.ones(2)), None)
    return lambda: loaded if (loaded := load_stats(path, 2)[0]).count else None


def features(path):
    save_archive(path, {"features": np.ones((4, 3), np.float32)})
    return lambda: _read(path, (4, 3))


STORED = {
    "index of a shard, a byte": (index, lambda path: flip_bit(path, 90), True),
    "index of a shard, cut": (index, lambda path: path.write_bytes(path.read_bytes()[:70]), True),
    "record of a comparison": (record, lambda path: path.write_text('{"label": '), True),
    "record of another shape": (record, lambda path: path.write_text("[]"), True),
    "statistics of samples": (stats, lambda path: flip_bit(path, -2), True),
    "features": (features, lambda path: flip_bit(path, 140), False),  # computed again without a word
}


@pytest.mark.parametrize("name", STORED)
def test_a_damaged_file_is_named_and_does_not_count(name, tmp_path, caplog):
    write, damage, said = STORED[name]
    load = write(tmp_path / "x.npz")
    with caplog.at_level(logging.WARNING, "ldm"):
        assert load() is not None and not caplog.text
        damage(tmp_path / "x.npz")
        assert load() is None
    assert (str(tmp_path / "x.npz") in caplog.text and "damaged" in caplog.text) == said


def test_a_digest_is_of_names_types_shapes_and_bits_and_equal_tensors_make_equal_files(tmp_path):
    path, tensors = tmp_path / "x.safetensors", {"b": torch.ones(2, 3), "a": torch.zeros(1, dtype=torch.int64)}
    save_with_digest(path, tensors, "facts", "[1, 2]")
    first = path.read_bytes()
    save_with_digest(path, dict(reversed(tensors.items())), "facts", "[1, 2]")
    assert path.read_bytes() == first and metadata_text(path, "facts") == "[1, 2]"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    others = [{**tensors, "b": torch.ones(3, 2)}, {**tensors, "a": torch.zeros(2, dtype=torch.int32)}]
    for other in (*others, {**tensors, "c": torch.ones(1)}, {"b": tensors["b"]}, {**tensors, "b": -tensors["b"]}):
        save_file(other, path, metadata)
        with pytest.raises(UserError, match="differ from their SHA-256"):
            metadata_text(path, "facts")
        assert metadata_text(path, "facts", check=False) == "[1, 2]"
    save_file(tensors, path, {"facts": "[3]"})
    assert metadata_text(path, "facts") == "[3]", "a file of an earlier version has no digest"


def test_an_average_of_damaged_snapshots_is_refused(tmp_path):
    class Folder:
        path = tmp_path

    model = torch.nn.Linear(3, 3)
    averages = PowerAverages(model, AveragesConfig(ema_lengths=(0.1,), ema_snapshot_steps=1))
    for step in (1, 2):
        averages.update(model, step)
        averages.snapshot(Folder(), step, last=False)
    assert reconstruct(tmp_path, 0.1).weights.keys() == {"weight", "bias"}
    path = tmp_path / "averages" / "step-1.safetensors"
    content = path.read_bytes()
    flip_bit(path, -1)
    with pytest.raises(UserError, match=r"step-1\.safetensors: its tensors differ from their SHA-256"):
        reconstruct(tmp_path, 0.1)
    path.write_bytes(content)
    with safe_open(path, framework="pt") as file:
        metadata = {"lengths": file.metadata()["lengths"].split(" ", 1)[1]}  # as an earlier version wrote it
    save_file({name: torch.zeros(1, dtype=torch.float16) for name in load_file(path)}, path, metadata)
    with pytest.raises(UserError, match="its snapshots are of different models"):
        reconstruct(tmp_path, 0.1)
