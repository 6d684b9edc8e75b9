"""Tar shards and parquet files: the same images as the folder that they were made of, in any order, and refusals;
so trainings from images, tar shards, parquet and latent caches see and learn the same."""

import dataclasses
import gzip
import io
import json
import os
import shutil
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from ldm.data import pixels, verify
from ldm.data.config import DataConfig
from ldm.data.dataset import collate
from ldm.data.open import open_data
from ldm.data.shapes import ShapesData
from ldm.data.shards import find_shards
from ldm.runtime.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

COUNT = 48


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LDM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def samples():
    """(name, PNG, class name, caption) of shapes."""
    data, found = ShapesData("train", 16, size=(COUNT, 1)), []
    for number in range(COUNT):
        picture = ((data[number].image.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "png")
        caption = data.captions(number)[0]
        found.append((f"{number:06d}.png", content.getvalue(), data.class_names[data.label(number)], caption))
    return found


def as_folder(place, samples):
    place.mkdir()
    for name, content, _, _ in samples:
        (place / name).write_bytes(content)
    rows = [json.dumps({"file_name": n, "label": label, "text": text}) for n, _, label, text in samples]
    (place / "metadata.jsonl").write_text("\n".join(rows))
    return place


def as_tar(place, samples, shards=3, facts="json"):
    """Written by the standard library; a test below writes them by webdataset."""
    place.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(samples)), shards)):
        members = []
        for index in part:
            name, content, label, text = samples[index]
            stem = name.removesuffix(".png")
            members.append((name, content))
            if facts == "json":
                members.append((f"{stem}.json", json.dumps({"label": label, "text": text}).encode()))
            elif facts:
                members += [(f"{stem}.cls", label.encode()), (f"{stem}.txt", text.encode())]
        write_tar(place / f"{number:03d}.tar", members)
    return place


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def as_parquet(place, samples, files=2, group=7):
    place.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(samples)), files)):
        rows = [samples[index] for index in part]
        table = pyarrow.table(
            {
                "image": [{"bytes": content, "path": name} for name, content, _, _ in rows],
                "label": [label for *_, label, _ in rows],
                "text": [text for *_, text in rows],
            }
        )
        parquet.write_table(table, place / f"train-{number:05d}.parquet", row_group_size=group)
    return place


def config(data, **settings):
    return DataConfig(**{"data": str(data), "image_size": 16, "validation_fraction": 0.25, **settings})


@pytest.fixture
def sources(tmp_path, samples):
    return {
        "folder": as_folder(tmp_path / "folder", samples),
        "tar": as_tar(tmp_path / "tar", samples),
        "cls": as_tar(tmp_path / "cls", samples, shards=1, facts="cls"),
        "parquet": as_parquet(tmp_path / "parquet", samples),
    }


@pytest.mark.parametrize("small", [True, False])
def test_every_source_is_the_same_data_bit_for_bit(sources, small, monkeypatch):
    """Images, augmentation, labels, captions, split and fingerprint; decoded into memory, or read as they are asked."""
    if not small:
        monkeypatch.setattr(verify, "RAM_LIMIT", 1000)
    for split in ("train", "validation"):
        data = {name: open_data(config(place, flip=True), split) for name, place in sources.items()}
        folder = data.pop("folder")
        assert 5 < len(folder) < COUNT - 5
        for name, other in data.items():
            assert other.fingerprint == folder.fingerprint and other.class_names == folder.class_names, name
            kind = pixels.RamPixels if small else pixels.FilePixels
            assert isinstance(other._pixels.pixels, kind)
            for index in np.random.default_rng(0).permutation(len(folder)).tolist():
                for key in (index, (index, 7)):
                    mine, theirs = other[key], folder[key]
                    assert torch.equal(mine.image, theirs.image)
                    assert (mine.label, mine.caption) == (theirs.label, theirs.caption)
            assert [other.captions(i) for i in range(len(other))] == [folder.captions(i) for i in range(len(folder))]


def test_any_number_of_workers_sees_the_same_though_shards_are_fewer(sources, monkeypatch):
    monkeypatch.setattr(verify, "RAM_LIMIT", 1000)
    order = [[(5, 1), (0, 2)], [(30, 3), (2, 4)], [(11, 5), (29, 6)]]
    for name in ("cls", "parquet"):
        data = open_data(config(sources[name]))
        seen = [
            [batch.images for batch in DataLoader(data, batch_sampler=order, num_workers=n, collate_fn=collate)]
            for n in (0, 2)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_shards_of_webdataset_itself_are_read(tmp_path, samples):
    wds = pytest.importorskip("webdataset")
    (tmp_path / "w").mkdir()
    with wds.ShardWriter(str(tmp_path / "w" / "%04d.tar"), maxcount=20, verbose=0) as writer:
        for number, (name, content, _, text) in enumerate(samples):
            key = name.removesuffix(".png")
            writer.write({"__key__": key, "png": content, "cls": number % 5, "txt": text, "meta.pyd": {"a": 1}})
    data = open_data(config(tmp_path / "w", validation_fraction=0.0))
    theirs = list(wds.WebDataset(sorted(map(str, (tmp_path / "w").iterdir())), shardshuffle=False).decode("rgb8"))
    assert len(data) == len(theirs) == COUNT
    for index, sample in enumerate(theirs):
        found = ((data[index].image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(found, sample["png"])
        assert data.label(index) == sample["cls"] and data.captions(index) == (sample["txt"],)
    assert data.class_names == ("0", "1", "2", "3", "4")


def test_class_names_of_the_datasets_library_are_kept(tmp_path, samples):
    features = {"info": {"features": {"label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"}}}}
    schema = pyarrow.schema(
        [
            ("img", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            ("label", pyarrow.int64()),
        ],
        metadata={"huggingface": json.dumps(features)},
    )
    rows = {"img": [{"bytes": s[1], "path": None} for s in samples[:4]], "label": [0, 2, 2, 0]}
    parquet.write_table(pyarrow.table(rows, schema=schema), tmp_path / "a.parquet")
    data = open_data(config(tmp_path / "a.parquet", validation_fraction=0.0))
    assert data.class_names == ("cat", "dog", "eel") and [data.label(i) for i in range(4)] == [0, 2, 2, 0]
    assert not data.has_captions


def test_an_index_is_made_once_and_again_when_a_shard_changes(sources, samples, monkeypatch):
    for name in ("cls", "parquet"):
        first = open_data(config(sources[name]))
        with monkeypatch.context() as context:
            context.setattr(tarfile, "open", None)
            context.setattr(parquet, "ParquetFile", None)
            assert open_data(config(sources[name])).fingerprint == first.fingerprint
        path = next(sources[name].iterdir())
        if name == "cls":
            write_tar(path, [(n, c) for n, c, _, _ in samples[:4]])
        else:
            path.unlink()
            as_parquet(sources[name] / "again", samples[:4], files=1)
            (sources[name] / "again" / "train-00000.parquet").rename(path)
        os.utime(path, ns=(1, 1))
        assert open_data(config(sources[name])).fingerprint != first.fingerprint


def test_reading_notices_that_a_shard_was_changed_or_cut(sources, monkeypatch):
    monkeypatch.setattr(verify, "RAM_LIMIT", 1000)
    data = open_data(config(sources["tar"]))
    (sources["tar"] / "000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"000\.tar: 000\d+\.png: changed since it was checked|cut short"):
        for index in range(len(data)):
            data[index]


def test_what_the_user_may_name(tmp_path, samples):
    place = as_tar(tmp_path / "s", samples[:6], shards=3)
    names = [place / f"{n:03d}.tar" for n in range(3)]
    assert find_shards(str(place)) == names
    assert find_shards(f"{place}/*.tar") == names and find_shards(f"{place}/{{000..001}}.tar") == names[:2]
    assert find_shards(f"{place}/{{000,002}}.tar") == [names[0], names[2]]
    assert find_shards(str(names[1])) == names[1:2]
    (tmp_path / "hub").mkdir()
    as_parquet(tmp_path / "hub" / "data", samples[:4], files=1)
    assert len(find_shards(str(tmp_path / "hub"))) == 1, "as the hub lays them out"
    assert find_shards(str(tmp_path)) is None and find_shards("shapes") is None


def damaged_header(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"000003.png") + 150] ^= 0xFF
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-11_000])


REFUSALS = {
    "not a whole tar file|damaged at": cut,
    "damaged at byte": damaged_header,
    "compressed by gzip": lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
    "not a whole tar file": lambda path: path.write_bytes(b"x" * 2000),
    "no image in it": lambda path: write_tar(path, [("a.txt", b"x")]),
    "is the second image of its sample": lambda path: write_tar(path, [("a.png", b"x"), ("a.jpg", b"x")]),
    "1 of 2 images have no label": lambda path: write_tar(path, [("a.png", b"x"), ("a.cls", b"1"), ("b.png", b"x")]),
    r"a\.json: not valid JSON": lambda path: write_tar(path, [("a.png", b"x"), ("a.json", b"{")]),
    r"a\.txt: not UTF-8": lambda path: write_tar(path, [("a.png", b"x"), ("a.txt", b"\xff")]),
    r"a\.cls: label must be": lambda path: write_tar(path, [("a.png", b"x"), ("a.cls", b"-1")]),
    r"a\.txt: \d+ bytes, more than": lambda path: write_tar(path, [("a.png", b"x"), ("a.txt", b"x" * (2**20 + 1))]),
    r"images cannot be read: a\.png \(not an image\)": lambda path: write_tar(path, [("a.png", b"x")]),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_damaged_and_nonsensical_tar_files_are_named(tmp_path, samples, message):
    place = as_tar(tmp_path / "s", samples[:6], shards=1)
    REFUSALS[message](place / "000.tar")
    with pytest.raises(UserError, match=message) as error:
        open_data(config(place))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_tar_file_cannot_make_us_read_a_huge_header(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("x" * (2**20 + 10) + ".png"))
    with pytest.raises(UserError, match="a header of"):
        open_data(config(path))


def test_names_that_would_leave_a_folder_are_only_names(tmp_path, samples):
    path = write_tar(tmp_path / "a.tar", [("../../etc/passwd.png", samples[0][1]), ("/b\x1b.png", samples[1][1])])
    before = sorted(tmp_path.rglob("*"))
    assert len(open_data(config(path, validation_fraction=0.0))) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_shards_that_count_from_zero_each_are_told_apart(tmp_path, samples):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", [(f"{k}.png", samples[3 * number + k][1]) for k in range(3)])
    with pytest.raises(UserError, match=r'the key "0" is in .*0\.tar and in .*1\.tar; .*`tar_keys` per_shard'):
        open_data(config(tmp_path))
    for settings in ({"tar_keys": "per_shard"}, {"layout_version": 1}):
        data = open_data(config(tmp_path, validation_fraction=0.0, **settings))
        assert len(data) == 6 and len({data[i].image.numpy().tobytes() for i in range(6)}) == 6
    as_parquet(tmp_path / "p", [("same.png", *sample[1:]) for sample in samples[:6]], files=2)
    assert len(open_data(config(tmp_path / "p", validation_fraction=0.0))) == 6, (
        "rows have a number, whatever their path"
    )
    twice = write_tar(tmp_path / "twice.tar", [("a/1.png", samples[0][1]), ("a/1.png", samples[0][1])])
    with pytest.raises(UserError, match=r'"a/1\.png" is the second image of its sample'):
        open_data(config(twice))


def test_what_is_left_out_is_reported(tmp_path, samples):
    members = [("a.png", samples[0][1]), ("b.txt", b"x"), ("a.seg.png", b"x"), ("._a.png", b"x"), ("d.pkl", b"x")]
    members += [("a.en.txt", b"words")]
    write_tar(tmp_path / "a.tar", members)
    for _ in range(2):  # from the tar file, and from its cached index
        data = open_data(config(tmp_path / "a.tar"))
        assert len(data) == 1
        passed = {item.what: (item.count, item.example, item.condition) for item in data.report.reading.passed_over}
        assert passed == {
            "sample without an image": (1, "b", False),
            "member ending .seg.png": (1, "a.seg.png", False),
            "member ending .en.txt": (1, "a.en.txt", True),
            "member ending .pkl": (1, "d.pkl", False),
            "hidden member": (1, "._a.png", False),
        }
    assert ["1 member ending .en.txt" in line for line in data.report.warnings()] == [True]


def test_parquet_that_cannot_be_used_is_refused_with_its_columns(tmp_path, samples, monkeypatch):
    def refused(message, table, **settings):
        parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=message):
            open_data(config(tmp_path / "a.parquet", **settings))

    refused("no column of images; name it by `image_column`; known: x", {"x": [1]})
    refused('column "image" holds int64, expected encoded images', {"image": [1]})
    refused(
        'no column "lable" .`label_column`.; known: image, label; did you mean "label"',
        {"image": [b"x"], "label": [1]},
        label_column="lable",
    )
    refused("row 1: no image in it", {"image": [{"bytes": b"x", "path": "a"}, {"bytes": None, "path": "b"}]})
    refused("row 0: label must be", {"image": [b"x"], "label": [1.5]})
    refused("1 of 2 images have no label", {"image": [b"x", b"y"], "label": [1, None]})
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(UserError, match="not a whole parquet file"):
        open_data(config(tmp_path / "a.parquet"))
    as_parquet(tmp_path / "two", samples[:4], files=1)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'guided-latents\[datasets\]'"):
        open_data(config(tmp_path / "two"))


def test_addresses_and_empty_patterns_are_refused(tmp_path):
    with pytest.raises(UserError, match="nothing is read over the network"):
        open_data(config("https://example.com/{000..100}.tar"))
    with pytest.raises(UserError, match="no file fits this pattern"):
        open_data(config(tmp_path / "*.tar"))
    for name, remedy in (("data-00000.arrow", "to_parquet"), ("a.tar.gz", "gunzip")):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=f"{name} cannot be read image by image; .*{remedy}"):
            open_data(config(tmp_path))
        (tmp_path / name).unlink()


def test_settings_of_columns_are_no_part_of_what_training_sees(sources):
    own = config(sources["parquet"])
    named = dataclasses.replace(own, image_column="image", label_column="label", text_column="text")
    assert open_data(own).fingerprint == open_data(named).fingerprint


TINY = [
    "--image-size", 16, "--validation-fraction", 0.25, "--device", "cpu", "--max-train-steps", 6, "--log-steps", 1,
    "--validation-steps", 0, "--train-batch-size", 16, "--validation-images", 8, "--learning-rate", 1e-2, "--flip",
]  # fmt: skip


def bits(folder, *parts):
    return {str(p.relative_to(folder)): p.read_bytes() for part in parts for p in sorted(folder.glob(part))}


def test_every_source_trains_the_same_weights_and_encodes_the_same_latents(sources, ldm, models, tmp_path, monkeypatch):
    """Autoencoder from images, diffusion from a latent cache made of each; with workers, and read as they are asked."""
    small = [
        "--block-out-channels", 8, 8, "--norm-num-groups", 4, "--no-attention", "--latent-channels", 4,
        "--calibration-images", 16,
    ]  # fmt: skip
    found = {}
    for name, place in sources.items():
        if name == "parquet":
            monkeypatch.setattr(verify, "RAM_LIMIT", 1000)
        workers = ("--dataloader-num-workers", 2 if name == "tar" else 0)
        out = tmp_path / f"out-{name}"
        run = ldm("train", "autoencoder", "--data", place, *TINY, *small, *workers, "--output-dir", out / "ae")
        assert run.code == 0, run.err
        encode = ("encode", "--data", place, "--image-size", 16, "--validation-fraction", 0.25, "--flip")
        run = ldm(*encode, "--autoencoder", out / "ae", "--output-dir", out / "z", "--device", "cpu")
        assert run.code == 0, run.err
        found[name] = bits(out, "ae/checkpoint-6/*.safetensors")
        found[name] |= {
            f"{path.name}/{moment}": values.numpy().tobytes()
            for path in (out / "z").glob("*.safetensors")
            for moment, values in load_file(path).items()
        }
        found[name]["facts"] = json.loads((out / "ae" / "run.json").read_text())["facts"]
        found[name]["key"] = json.loads((out / "z" / "manifest.json").read_text())["key"]
    assert len(found["folder"]) >= 6
    for name in ("tar", "cls", "parquet"):
        assert found[name] == found["folder"], name


def test_latents_encoded_anew_have_the_distribution_of_the_cache_and_train_as_well(sources, ldm, models, tmp_path):
    from scipy import stats

    from ldm.training.config import TrainingConfig
    from ldm.training.randomness import BatchPlan, BatchShard, StepRandom
    from ldm.training.tasks.latents import LatentSource, load_autoencoder
    from ldm.training.tasks.settings import ClassifierRun

    cpu = torch.device("cpu")
    autoencoder, _ = load_autoencoder(str(models.autoencoder), cpu)
    data = {flip: open_data(config(sources["tar"], flip=flip)) for flip in (False, True)}
    plan = BatchPlan(len(data[True]), 0, BatchShard(32), 0, 40)

    def sampled(latents, flip):
        training = TrainingConfig(output_dir=str(tmp_path / f"out-{flip}"))
        settings = ClassifierRun(latents=latents, training=training)
        source = LatentSource(settings, autoencoder, data[flip], cpu)
        batches = enumerate(source.batches(plan))
        return torch.cat([batch.sample(StepRandom(0, step, 0, plan.shard, cpu)) for step, batch in batches])

    cached, online = sampled("", False), sampled("none", False)
    torch.testing.assert_close(cached, online, rtol=2e-3, atol=2e-3)  # the cache is float16
    cached, online = sampled("", True), sampled("none", True)
    assert not torch.allclose(cached, online, atol=0.1), "each has drawn its own mirror images"
    for index in range(0, cached[0].numel(), 7):
        a, b = (values.flatten(1)[:, index].numpy() for values in (cached, online))
        assert stats.ks_2samp(a, b).pvalue > 1e-4
    assert stats.ks_2samp(a, b + 0.3 * b.std()).pvalue < 1e-4, "the test has the power to see a shift"

    scores = {}
    for latents in ("none", tmp_path / "z"):
        out = tmp_path / f"unet-{len(scores)}"
        flags = ("--data", sources["parquet"], *TINY, "--max-train-steps", 30, "--latents", latents)
        run = ldm(*models.command("diffusion", out, *flags))
        assert run.code == 0, run.err
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        scores[latents] = [line["validation"]["validation_loss"] for line in lines if "validation" in line][-1]
    ours, theirs = scores.values()
    assert ours == pytest.approx(theirs, rel=0.05), scores
    assert ours < 1.1


def test_a_finished_run_makes_no_cache_again(ldm, models, tmp_path):
    out = tmp_path / "run"
    command = models.command("classifier", out, "--latents", tmp_path / "latents", steps=2)
    assert ldm(*command).code == 0 and (tmp_path / "latents").is_dir()
    shutil.rmtree(tmp_path / "latents")
    assert ldm(*command).code == 0 and not (tmp_path / "latents").exists()


def test_a_run_without_a_cache_does_not_go_on_with_one(ldm, models, tmp_path, refused):
    out = tmp_path / "run"
    assert ldm(*models.command("classifier", out, "--latents", "none", steps=2)).code == 0
    assert not (out / "latents").exists() and not (tmp_path / "none").exists()
    refused(models.command("classifier", out, steps=4), "latents was 'none', is None")
