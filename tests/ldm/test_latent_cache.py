"""Cached latents against direct encoding; stale, damaged and interrupted caches."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoencoders import Tiling
from ldm.data import cache_device, latent_cache, latent_layout
from ldm.data.latent_cache import CacheKey, LatentCache, encode_latents
from ldm.data.shapes import ShapesData
from ldm.runtime.errors import UserError
from ldm.runtime.files import sha256_of_file


@dataclass(frozen=True)
class Encoding:
    mean: Tensor
    std: Tensor | None


class TinyEncoder(nn.Module):
    """A strided convolution and a spread that depends on the image."""

    factor = 4

    def __init__(self, stochastic: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.dropout = nn.Dropout(0.5)  # tells whether the mode is right
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=generator) * scale)
            self.conv.bias.zero_()  # type: ignore[union-attr]
        self.stochastic, self.seen = stochastic, 0

    def encode(self, images: Tensor, *, tiling: Tiling | None = None) -> Encoding:
        self.seen += len(images)
        mean = self.dropout(self.conv(images))
        return Encoding(mean, mean.sigmoid() * 0.1 if self.stochastic else None)

    def fingerprint(self) -> str:
        return f"tiny {float(self.conv.weight.detach().double().sum())} {self.stochastic}"


class Flipping(ShapesData):
    """Shapes with mirrored visits, so that the cache holds both sides."""

    flip = True


def shapes(count: int = 20, size: int = 16, seed: int = 0, flips: bool = True) -> ShapesData:
    return (Flipping if flips else ShapesData)("train", size, (count, 4), seed)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_layout, "SHARD_EXAMPLES", 8)


@pytest.fixture(params=["memory", "files"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "files":
        monkeypatch.setattr(latent_cache, "RAM_LIMIT", 0)
    return request.param


def direct(encoder: TinyEncoder, data: ShapesData, indices: Tensor, flips: Tensor) -> Encoding:
    images = torch.stack(
        [data[int(i)].image.flip(-1) if f else data[int(i)].image for i, f in zip(indices, flips, strict=True)]
    )
    with torch.no_grad():
        return encoder.eval().encode(images)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_cached_latents_are_the_encoders(tmp_path: Path, where: str, batch_size: int) -> None:
    encoder, data = TinyEncoder(), shapes()
    state = torch.get_rng_state()
    cache = encode_latents(encoder.train(), data, tmp_path / "latents", batch_size=batch_size)
    assert encoder.training and torch.equal(state, torch.get_rng_state())
    assert (len(cache), cache.shape, cache.has_flips, cache.has_std) == (20, (4, 4, 4), True, True)
    indices = torch.tensor([19, 0, 7, 8, 8, 3])
    flips = torch.tensor([True, False, True, False, True, False])
    expected = direct(encoder, data, indices, flips)
    mean, std = cache.moments(indices, flips)
    assert mean.dtype == std.dtype == torch.float16
    for got, wanted in ((mean, expected.mean), (std, expected.std)):
        assert ((got.float() - wanted).abs() <= 2**-11 * wanted.abs() + 1e-7).all()
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(cache.gather(indices, flips, noise), mean.float() + std.float() * noise)
    assert cache.gather(indices, flips).dtype == torch.float32 and torch.equal(
        cache.gather([5]), cache.moments([5])[0].float()
    )
    names = sorted(path.name for path in (tmp_path / "latents").iterdir())
    assert names == [f"latents-0000{n}-of-00003.safetensors" for n in range(3)] + ["manifest.json"]
    stored = load_file(tmp_path / "latents" / names[2])
    assert {name: tuple(value.shape) for name, value in stored.items()} == {
        "mean": (4, 2, 4, 4, 4),
        "std": (4, 2, 4, 4, 4),
    }


def test_deterministic_encoder_without_flips(tmp_path: Path, where: str) -> None:
    encoder, data = TinyEncoder(stochastic=False), shapes(flips=False)
    cache = encode_latents(encoder, data, tmp_path / "latents")
    assert not cache.has_flips and not cache.has_std
    mean, std = cache.moments([4, 4])
    assert std is None and torch.equal(cache.gather([4, 4], noise=torch.ones_like(mean)), mean.float())
    with pytest.raises(ValueError, match="mirrored"):
        cache.moments([1], torch.tensor([True]))
    for wrong in ([20], [-1]):
        with pytest.raises(IndexError, match="0 to 19"):
            cache.moments(wrong)
    with pytest.raises(ValueError, match="noise"):
        cache.gather([1], noise=torch.zeros(1, 4))
    with pytest.raises(ValueError, match="flips"):
        cache.moments([1], torch.zeros(2, dtype=torch.bool))


def test_a_whole_cache_is_opened_not_made_again(tmp_path: Path) -> None:
    encoder, data = TinyEncoder(), shapes()
    first = encode_latents(encoder, data, tmp_path / "latents")
    seen = encoder.seen
    assert torch.equal(encode_latents(encoder, data, tmp_path / "latents").gather([3]), first.gather([3]))
    assert encoder.seen == seen


@pytest.mark.parametrize(
    ("changed", "data", "encoder"),
    [
        ("images", shapes(seed=1), TinyEncoder()),
        ("images", shapes(count=21), TinyEncoder()),
        ("image_size", shapes(size=32), TinyEncoder()),
        ("flip", shapes(flips=False), TinyEncoder()),
        ("autoencoder", shapes(), TinyEncoder(scale=2.0)),
        ("autoencoder", shapes(), TinyEncoder(stochastic=False)),
    ],
)
def test_a_stale_cache_is_refused_and_what_differs_is_named(
    tmp_path: Path, changed: str, data: ShapesData, encoder: TinyEncoder
) -> None:
    folder = tmp_path / "latents"
    encode_latents(TinyEncoder(), shapes(), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for use in (
        lambda: LatentCache.open(folder, CacheKey.of(encoder, data)),
        lambda: encode_latents(encoder, data, folder),
    ):
        with pytest.raises(UserError, match=f"stale: .*{changed} \\(cached"):
            use()
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_captions_do_not_make_a_cache_stale() -> None:
    data = shapes()
    key = CacheKey.of(TinyEncoder(), data)
    assert key == CacheKey(data.image_fingerprint, TinyEncoder().fingerprint(), 16, "center", True)
    assert key.digest() != dataclasses.replace(key, flip=False).digest()


SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import test_latent_cache as t
    t.latent_layout.SHARD_EXAMPLES = 8
    write, written = t.latent_cache.save_tensors, []
    def counted(path, tensors, metadata):
        if len(written) == 2:  # die while the third shard is being written
            Path(path).with_name(f".{Path(path).name}.tmp-abc").write_bytes(b"part")
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(path)
        write(path, tensors, metadata)
    t.latent_cache.save_tensors = counted
    t.encode_latents(t.TinyEncoder(), t.shapes(40), Path(sys.argv[2]), batch_size=4)
"""


def test_a_killed_run_leaves_no_cache_and_is_taken_up_again(tmp_path: Path) -> None:
    folder, data = tmp_path / "latents", shapes(40)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(here), str(folder)],
        env={**os.environ, "PYTHONPATH": str(here.parent.parent)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(list(folder.glob("latents-*"))) == 2 and len(list(folder.glob(".latents-*"))) == 1
    with pytest.raises(UserError, match="not complete"):
        LatentCache.open(folder, CacheKey.of(TinyEncoder(), data))
    encoder = TinyEncoder()
    cache = encode_latents(encoder, data, folder)
    assert encoder.seen == 1 + 2 * 24  # one to learn the shape, three of five shards on both sides
    assert not list(folder.glob(".*"))
    whole = encode_latents(TinyEncoder(), data, tmp_path / "whole")
    assert torch.equal(cache.gather(range(40)), whole.gather(range(40)))


def test_remains_of_another_encoder_are_not_reused(tmp_path: Path) -> None:
    folder, data = tmp_path / "latents", shapes()
    encode_latents(TinyEncoder(scale=3.0), data, folder)
    (folder / "manifest.json").unlink()
    (folder / "latents-00000-of-00099.safetensors").write_bytes(b"older")
    encoder = TinyEncoder()
    cache = encode_latents(encoder, data, folder)
    assert encoder.seen == 1 + 40 and len(list(folder.iterdir())) == 4
    expected = direct(encoder, data, torch.tensor([2]), torch.tensor([False])).mean
    assert (cache.gather([2]) - expected).abs().max() < 5e-3


def test_ctrl_c_keeps_whole_shards_and_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TinyEncoder().train()
    encode = encoder.encode
    monkeypatch.setattr(
        encoder,
        "encode",
        lambda images, **_: encode(images) if encoder.seen < 25 else signal.raise_signal(signal.SIGINT),
    )
    with pytest.raises(KeyboardInterrupt):
        encode_latents(encoder, shapes(), tmp_path / "latents", batch_size=8)
    assert encoder.training and [path.name for path in (tmp_path / "latents").iterdir()] == [
        "latents-00000-of-00003.safetensors"
    ]


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"something else \(thesis.txt\)"):
        encode_latents(TinyEncoder(), shapes(), tmp_path)
    with pytest.raises(UserError, match="a file"):
        encode_latents(TinyEncoder(), shapes(), tmp_path / "thesis.txt")
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize(("value", "message"), [(7e4, "largest mean"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_latents_beyond_fp16_are_refused(tmp_path: Path, value: float, message: str) -> None:
    class Diverged(TinyEncoder):
        def encode(self, images: Tensor, *, tiling: Tiling | None = None) -> Encoding:
            mean = self.conv(images)
            if self.seen:
                mean[1, 0, 0, 0] = value
            self.seen += 1
            return Encoding(mean, None)

    data = shapes(flips=False)
    with pytest.raises(UserError, match=f"image 1 .*float16.*{message}"):
        encode_latents(Diverged(), data, tmp_path / "latents", batch_size=8)
    with pytest.raises(UserError, match="does not exist"):
        LatentCache.open(tmp_path / "latents", CacheKey.of(Diverged(), data))


def test_absent_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        LatentCache.open(tmp_path / "none", CacheKey.of(TinyEncoder(), shapes()))


def damage_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / "latents-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def remove_shard(folder: Path) -> None:
    (folder / "latents-00001-of-00003.safetensors").unlink()


def other_shape(folder: Path) -> None:
    save_file(
        {"mean": torch.zeros(1).half(), "std": torch.zeros(1).half()}, folder / "latents-00001-of-00003.safetensors"
    )


def huge_header(folder: Path) -> None:
    (folder / "latents-00001-of-00003.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def deep_header(folder: Path) -> None:
    (folder / "latents-00001-of-00003.safetensors").write_bytes((10**5).to_bytes(8, "little") + b"[" * 10**5)


def edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.update(changes)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def other_format(folder: Path) -> None:
    edit(folder, format=99)


def no_layout(folder: Path) -> None:
    edit(folder, layout={"count": -1})


def few_checksums(folder: Path) -> None:
    edit(folder, sha256=[])


def half_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": 1,')


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        remove_shard,
        other_shape,
        huge_header,
        deep_header,
        other_format,
        no_layout,
        few_checksums,
        half_manifest,
    ],
)
def test_damage_is_found(tmp_path: Path, where: str, damage: object) -> None:
    folder = tmp_path / "latents"
    encode_latents(TinyEncoder(), shapes(), folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(UserError) as caught:
        LatentCache.open(folder, CacheKey.of(TinyEncoder(), shapes()))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def of_an_earlier_version(folder: Path) -> None:
    """A cache as it was before its shards had checksums; those of the files are in the manifest."""
    shards = sorted(folder.glob("latents-*"))
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            metadata = {name: value for name, value in file.metadata().items() if name != "crc32"}
        save_file(load_file(shard), shard, metadata)
    edit(folder, sha256=[sha256_of_file(shard) for shard in shards])


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_flipped_bit_is_found_in_a_cache_of_any_size(
    tmp_path: Path, where: str, damaged: int, earlier: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """At once where it is read whole, else when the image is read; large ones of earlier versions are unchecked."""
    folder, key = tmp_path / "latents", CacheKey.of(TinyEncoder(), shapes())
    encode_latents(TinyEncoder(), shapes(), folder)
    if earlier:
        of_an_earlier_version(folder)
    with caplog.at_level(logging.INFO, "ldm"):
        LatentCache.open(folder, key).moments(range(20), torch.arange(20) % 2 == 1)
        assert ("unchecked" in caplog.text) == (earlier and where == "files")
    shard = sorted(folder.glob("latents-*"))[damaged]
    damage_bit(shard)
    if earlier and where == "files":
        return
    with pytest.raises(UserError, match=r"damaged.*SHA-256" if earlier else rf"image {[7, 15, 19][damaged]} differs"):
        cache = LatentCache.open(folder, key)
        cache.moments([0, 9, 16], torch.tensor([True, False, True]))  # others are read as before
        cache.moments(range(20), torch.ones(20, dtype=torch.bool))


def test_a_damaged_shard_is_encoded_again(tmp_path: Path) -> None:
    folder, data = tmp_path / "latents", shapes()
    whole = encode_latents(TinyEncoder(), data, folder).gather(range(20))
    (folder / "manifest.json").unlink()
    damage_bit(folder / "latents-00001-of-00003.safetensors")
    encoder = TinyEncoder()
    assert torch.equal(encode_latents(encoder, data, folder).gather(range(20)), whole)
    assert encoder.seen == 1 + 2 * 8, "one to learn the shape, one of three shards on both sides"


def test_whole_shards_of_an_earlier_version_are_reused_and_that_is_said(tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    folder, data, encoder = tmp_path / "latents", shapes(), TinyEncoder()
    encode_latents(TinyEncoder(), data, folder)
    of_an_earlier_version(folder)
    (folder / "manifest.json").unlink()
    with caplog.at_level(logging.INFO, "ldm"):
        encode_latents(encoder, data, folder)
    assert encoder.seen == 1 and caplog.text.count("3 shards of an earlier version have no checksums") == 1


def test_a_folder_named_as_a_file_of_a_cache_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "latents" / "manifest.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds something else \(manifest\.json\)"):
        encode_latents(TinyEncoder(), shapes(), tmp_path / "latents")


def test_memory_mapped_latents_are_not_read_until_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_cache, "RAM_LIMIT", 0)
    cache = encode_latents(TinyEncoder(), shapes(), tmp_path / "latents")
    assert all(isinstance(array, np.memmap) for shard in cache._shards for array in shard.maps.values())


def test_shards_are_limited_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_layout, "SHARD_EXAMPLES", 4096)
    layout = latent_layout.Layout(10_000, (4, 64, 64), True, True)
    assert layout.example_bytes == 2 * 2 * 4 * 64 * 64 * 2 and layout.per_shard == 2**27 // layout.example_bytes == 1024
    assert [len(layout.rows(shard)) for shard in range(layout.shards)] == [1024] * 9 + [784]
    assert latent_layout.Layout(10_000, (4, 8, 8), False, False).per_shard == 4096


def test_workers_give_the_same_latents(tmp_path: Path) -> None:
    data = shapes()
    caches = [encode_latents(TinyEncoder(), data, tmp_path / str(n), num_workers=n, batch_size=5) for n in (0, 2)]
    assert torch.equal(caches[0].gather(range(20)), caches[1].gather(range(20)))


def test_a_training_is_the_same_wherever_its_latents_are(ldm, models, tmp_path, refused, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    latents = ("--latents", tmp_path / "latents", "--text-encoder", "None", "--dataloader-num-workers", 1)
    found = {}
    for place in ("auto", "cpu", "disk"):
        command = models.command("diffusion", tmp_path / place, *latents, "--cache-device", place, steps=3)
        with monkeypatch.context() as context:
            if place == "cpu":  # in memory even where auto would not
                context.setattr(latent_cache, "RAM_LIMIT", 0)
            assert ldm(*command).code == 0
        found[place] = (tmp_path / place / "checkpoint-3" / "model.safetensors").read_bytes()
    assert found["auto"] == found["cpu"] == found["disk"]
    other = models.command("classifier", tmp_path / "new", *latents[:2], "--cache-device", "cuda")
    refused(other, "--cache-device cuda: this training is on cpu; take auto, cpu or disk")
    monkeypatch.setattr(cache_device, "_available", lambda: 10)
    place = models.command("classifier", tmp_path / "new", *latents[:2], "--cache-device", "cpu")
    assert "the latents take" in ldm(*place).err


def test_where_latents_go_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU unless that takes more than a quarter of its free memory, then in memory, then in the files."""
    monkeypatch.setattr(cache_device, "_free", lambda device: 400)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    chosen = [cache_device.choose_cache_device("auto", cuda, size, 150) for size in (100, 101, 150, 151)]
    assert chosen == [cuda, cpu, cpu, None]
    assert [cache_device.choose_cache_device("auto", cpu, size, 150) for size in (150, 151)] == [cpu, None]
    assert cache_device.choose_cache_device("cuda", cuda, 400, 0) == cuda
    with pytest.raises(UserError, match="the latents take 401 bytes, the GPU has 400 free; take cpu or disk"):
        cache_device.choose_cache_device("cuda", cuda, 401, 0)
