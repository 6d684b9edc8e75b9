"""Folders of images: what they hold, their splits, their augmentation, and everything that is refused."""

import dataclasses
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ldm.data import pixels, verify
from ldm.data.config import DataConfig
from ldm.data.dataset import ImageData, collate
from ldm.data.open import hold_out, open_data
from ldm.runtime.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LDM_CACHE", str(cache))
    return cache


def write(path: Path, colour: object = "red", size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def many(folder: Path, count: int = 40, size: tuple[int, int] = (12, 8)) -> Path:
    generator = np.random.Generator(np.random.PCG64(3))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    return folder


def metadata(folder: Path, *rows: object, name: str = "metadata.jsonl") -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def config(folder: Path, **settings: object) -> DataConfig:
    return DataConfig(**{"data": str(folder), "image_size": 8, "validation_fraction": 0.0, **settings})  # type: ignore[arg-type]


def both(settings: DataConfig) -> tuple[ImageData, ImageData]:
    return open_data(settings), open_data(settings, "validation")


def colours(data: ImageData) -> list[list[int]]:
    return [((data[i].image[:, 0, 0] + 1) * 127.5).round().int().tolist() for i in range(len(data))]


# --- what a folder holds


def test_unlabelled_folder_is_sorted_and_recursive(tmp_path: Path) -> None:
    write(tmp_path / "b.png", "blue")
    write(tmp_path / "sub" / "c.JPG", "lime")
    write(tmp_path / "a.bmp", "red")
    write(tmp_path / ".hidden.png")
    write(tmp_path / "__MACOSX" / "x.png")
    (tmp_path / "notes.txt").write_text("no image")
    data = open_data(config(tmp_path))
    assert isinstance(data, ImageData)
    assert len(data) == 3 and np.abs(np.subtract(colours(data), [[255, 0, 0], [0, 0, 255], [0, 255, 0]])).max() <= 1
    assert data.class_names == () and data.label(0) == -1 and data.captions(0) == () and not data.has_captions
    example = data[1]
    assert example.image.dtype == torch.float32 and example.image.shape == (3, 8, 8) and example.image.is_contiguous()
    assert (example.label, example.caption, example.index) == (-1, "", 1)
    assert data.attributes(0) == {} and data.attribute_names == {}


def test_class_folders(tmp_path: Path) -> None:
    write(tmp_path / "dog" / "1.png", "red")
    write(tmp_path / "cat" / "deep" / "2.png", "blue")
    write(tmp_path / "cat" / "1.png", "lime")
    data = open_data(config(tmp_path))
    assert data.class_names == ("cat", "dog")
    assert [data.label(i) for i in range(3)] == [0, 0, 1]
    assert colours(data) == [[0, 255, 0], [0, 0, 255], [255, 0, 0]]


def test_links_in_a_folder_are_followed_without_loops(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere" / "1.png").parent
    write(tmp_path / "data" / "a" / "1.png")
    (tmp_path / "data" / "b").symlink_to(elsewhere)
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data")
    assert open_data(config(tmp_path / "data")).class_names == ("a", "b")


def test_jsonl_with_captions_and_named_labels(tmp_path: Path) -> None:
    for name, colour in (("x.png", "red"), ("d/y.png", "blue"), ("unlisted.png", "white")):
        write(tmp_path / name, colour)
    metadata(
        tmp_path,
        {"file_name": "./d/y.png", "text": ["a blue square", "blue"], "label": "cold", "extra": 1},
        "",
        {"file_name": "x.png", "text": "<b>\u001b[31mred\u202e", "label": "warm"},
    )
    data = open_data(config(tmp_path))
    assert colours(data) == [[0, 0, 255], [255, 0, 0]]
    assert data.has_captions and data.captions(0) == ("a blue square", "blue")
    assert data[1].caption == "<b>\u001b[31mred\u202e"  # as it is: only who shows it must beware
    assert data.class_names == ("cold", "warm") and [data.label(0), data.label(1)] == [0, 1]


def test_csv_with_numbers_and_with_names(tmp_path: Path) -> None:
    for name in ("a.png", "b, c.png"):
        write(tmp_path / name)
    rows = ("\ufefffile_name,text,label", 'a.png,"one, two",2', '"b, c.png",three,0')
    data = open_data(config(metadata(tmp_path, *rows, name="metadata.csv")))
    assert data.captions(0) == ("one, two",) and data.class_names == ("0", "2") and data.label(0) == 1
    data = open_data(config(metadata(tmp_path, "file_name,label", "a.png,7", '"b, c.png",x', name="metadata.csv")))
    assert data.class_names == ("7", "x") and not data.has_captions


def test_unlisted_images_and_other_columns_are_left_out(tmp_path: Path) -> None:
    many(tmp_path, 3)
    assert len(open_data(config(metadata(tmp_path, {"file_name": "1.png"})))) == 1


# --- splits


def test_splits_are_disjoint_whole_and_stable(tmp_path: Path) -> None:
    many(tmp_path, 60)
    settings = config(tmp_path, validation_fraction=0.25)
    train, validation = both(settings)
    assert len(train) + len(validation) == 60 and 5 <= len(validation) <= 25
    assert train.image_fingerprint != validation.image_fingerprint
    seen = {data[i].image.numpy().tobytes() for data in (train, validation) for i in range(len(data))}
    assert len(seen) == 60
    held_out = hold_out([f"{n}.png" for n in range(1000)], 0.25)
    assert 200 < len(held_out) < 300
    assert hold_out([f"{n}.png" for n in range(2000)], 0.25) & {f"{n}.png" for n in range(1000)} == held_out


def test_a_tiny_folder_still_holds_one_out(tmp_path: Path) -> None:
    train, validation = both(config(many(tmp_path, 3), validation_fraction=0.01))
    assert (len(train), len(validation)) == (2, 1)


def test_no_class_loses_its_only_image(tmp_path: Path) -> None:
    """Of 30 classes half have one image, half have four: all are among the training images, some are held out."""
    for number in range(30):
        for copy in range(1 if number % 2 else 4):
            write(tmp_path / f"{number:02}" / f"{copy}.png", (number, copy, 0))
    train, held_out = both(config(tmp_path, validation_fraction=0.5))
    assert {train.label(index) for index in range(len(train))} == set(range(30))
    assert len(held_out) > 10 and {held_out.label(index) % 2 for index in range(len(held_out))} == {0}
    earlier, _ = both(config(tmp_path, validation_fraction=0.5, layout_version=1))
    assert {earlier.label(index) for index in range(len(earlier))} < set(range(30))
    names = [f"{number}" for number in range(200)]
    labels = [number % 2 for number in range(200)]  # both keep images in any case, so the names alone decide
    assert hold_out(names, 0.3, labels) == hold_out(names, 0.3)
    for name in ("a", "b"):
        write(tmp_path / "single" / name / "x.png")
    with pytest.raises(UserError, match="the only one of its class: add images, or leave the labels out"):
        open_data(config(tmp_path / "single", validation_fraction=0.5), "validation")


def test_number_labels_with_gaps_are_classes_of_these_names(tmp_path: Path) -> None:
    folder = many(tmp_path, 6)
    labels = (388, 1, 999, 1, 388, 999)
    metadata(folder, *({"file_name": f"{row}.png", "label": label} for row, label in enumerate(labels)))
    data = open_data(config(folder))
    assert data.class_names == ("1", "388", "999")
    assert [data.class_names[data.label(row)] for row in range(6)] == [str(label) for label in labels]
    earlier = open_data(config(folder, layout_version=1))
    assert len(earlier.class_names) == 1000 and [earlier.label(row) for row in range(6)] == list(labels)


def test_fingerprints_tell_content_captions_and_preprocessing(tmp_path: Path) -> None:
    a, b = many(tmp_path / "a", 4), many(tmp_path / "b", 4)
    first, second = open_data(config(a)), open_data(config(b))
    assert first.fingerprint == second.fingerprint and first.image_fingerprint == second.image_fingerprint
    flipped = open_data(config(a, flip=True))
    assert flipped.fingerprint != first.fingerprint and flipped.image_fingerprint == first.image_fingerprint
    told = open_data(config(metadata(b, *({"file_name": f"{n}.png", "text": "x"} for n in range(4)))))
    assert told.fingerprint != first.fingerprint and told.image_fingerprint == first.image_fingerprint
    Image.fromarray(255 - np.asarray(Image.open(a / "2.png"))).save(a / "2.png")
    assert open_data(config(a)).image_fingerprint != first.image_fingerprint


# --- augmentation


def test_plain_examples_are_the_centre(tmp_path: Path) -> None:
    many(tmp_path, 2, (12, 8))
    data = open_data(config(tmp_path, crop="random", flip=True))
    expected = np.asarray(Image.open(tmp_path / "1.png"))[:, 2:10].transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(data[1].image.numpy() - expected).max() < 1e-6
    assert torch.equal(data[-1].image, data[1].image) and data[-1].index == 1
    with pytest.raises(IndexError):
        data[2]


def test_augmentation_is_a_pure_function_of_index_and_seed(tmp_path: Path) -> None:
    folder = many(tmp_path, 6, (12, 8))
    metadata(folder, *({"file_name": f"{n}.png", "text": [f"{n}a", f"{n}b", f"{n}c"]} for n in range(6)))
    data = open_data(config(folder, crop="random", flip=True))
    keys = [(i, seed) for seed in range(40) for i in range(6)]
    here = [data[key] for key in keys]
    plans = [keys[start : start + 16] for start in range(0, len(keys), 16)]
    for copy, workers in ((pickle.loads(pickle.dumps(data)), 0), (data, 2)):
        batches = list(DataLoader(copy, batch_sampler=plans, num_workers=workers, collate_fn=collate))  # type: ignore[arg-type]
        assert torch.equal(torch.cat([batch.images for batch in batches]), torch.stack([e.image for e in here]))
        assert [text for batch in batches for text in batch.captions] == [e.caption for e in here]
    # Image 0 was drawn 40 times: 5 places x 2 sides x 3 captions, each a true part of the picture.
    picture = np.asarray(Image.open(folder / "0.png")).transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    views = {(left, side): picture[:, :, left : left + 8][:, :, ::side] for left in range(5) for side in (1, -1)}
    found = [
        next(name for name, view in views.items() if np.abs(view - e.image.numpy()).max() < 1e-6)
        for e in here
        if e.index == 0
    ]
    assert {left for left, _ in found} == set(range(5)) and 8 <= sum(side == 1 for _, side in found) <= 32
    assert {e.caption for e in here if e.index == 0} == {"0a", "0b", "0c"}


def test_no_flip_and_centre_crop_leave_the_image_alone(tmp_path: Path) -> None:
    data = open_data(config(many(tmp_path, 1)))
    assert all(torch.equal(data[0, seed].image, data[0].image) for seed in range(20))


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    data = open_data(config(many(tmp_path, 3), crop="random", flip=True))
    assert data[0, 1].image.shape == (3, 8, 8)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]


def test_memory_and_files_give_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many(tmp_path, 5, (50, 31))
    settings = config(tmp_path, crop="random", flip=True, image_size=16)
    in_memory = open_data(settings)
    assert isinstance(in_memory._pixels.pixels, pixels.RamPixels)  # type: ignore[attr-defined]
    kept = {key: in_memory[key].image for key in ((i, s) for i in range(5) for s in range(10))}
    prints = in_memory.fingerprint
    del in_memory
    for limit in (100, 16 * 16 * 3 * 5):  # known to be too small at once; found to be so half-way
        monkeypatch.setattr(verify, "RAM_LIMIT", limit)
        from_files = open_data(settings)
        assert isinstance(from_files._pixels.pixels, pixels.FilePixels)  # type: ignore[attr-defined]
        assert from_files.fingerprint == prints
        assert all(torch.equal(from_files[key].image, image) for key, image in kept.items())
        del from_files


# --- bad files


def spoil(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-60])
    return path


def test_bad_files_within_the_limit_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    many(tmp_path, 6)
    whole = colours(open_data(config(tmp_path)))
    spoil(tmp_path / "3.png")
    with caplog.at_level(logging.WARNING, "ldm"):
        data = open_data(config(tmp_path, max_bad_images=1))
    assert colours(data) == whole[:3] + whole[4:]
    assert "1 of 6 images cannot be read: 3.png" in caplog.text


def test_bad_files_beyond_the_limit_are_an_error(tmp_path: Path) -> None:
    many(tmp_path, 9)
    for number in range(7):
        spoil(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match=r"7 of 9 .*0\.png .*4\.png .* and 2 more; .*`max_bad_images` 7"):
        open_data(config(tmp_path, max_bad_images=6))
    for number in (7, 8):
        spoil(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match="9 of 9"):
        open_data(config(tmp_path, max_bad_images=100))


def test_large_folders_are_decoded_once_and_then_remembered(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(tmp_path, 6)
    spoil(tmp_path / "3.png")
    monkeypatch.setattr(verify, "RAM_LIMIT", 100)
    settings = config(tmp_path, max_bad_images=1)
    decoded: list[int] = []
    decode_rgb = verify.decode_rgb
    monkeypatch.setattr(verify, "decode_rgb", lambda content: decoded.append(len(content)) or decode_rgb(content))
    prints = [open_data(settings).fingerprint for _ in range(2)]
    assert prints[0] == prints[1] and len(decoded) == 6 + 1  # the bad one is looked at again
    assert not any(path.name.startswith("images-") for path in tmp_path.iterdir())
    write(tmp_path / "5.png", "white")
    data = open_data(settings)
    assert len(decoded) == 6 + 1 + 2 and data.fingerprint != prints[0]
    write(tmp_path / "5.png", "black", (9, 9))
    with pytest.raises(UserError, match=r"5\.png: changed since it was checked"):
        data[4]
    (tmp_path / "5.png").unlink()
    with pytest.raises(UserError, match=r"5\.png: No such file"):
        data[4]
    for path in own_cache.iterdir():
        path.write_bytes(b"broken")
    assert len(open_data(settings)) == 4


def test_threads_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many(tmp_path, 30)
    one = open_data(config(tmp_path)).fingerprint
    monkeypatch.setattr(verify, "_SMALL_FILE", 0)
    monkeypatch.setattr(verify, "_BLOCK", 7)
    monkeypatch.setattr(verify, "_cpus", lambda: 3)
    assert open_data(config(tmp_path)).fingerprint == one


def test_both_splits_share_one_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(many(tmp_path, 10), validation_fraction=0.3)
    train = open_data(settings)
    monkeypatch.setattr(verify, "_verify", lambda *_: pytest.fail("checked twice"))
    assert len(train) + len(open_data(settings, "validation")) == 10


# --- refusals: one line each


def refuse(name: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def register(make: Callable[[Path], object]) -> Callable[[Path], object]:
        REFUSALS.append(pytest.param(make, name, id=make.__name__))
        return make

    return register


REFUSALS: list[object] = []
OUTSIDE = "/etc/hostname"


@refuse(r"nowhere\": neither a folder nor a known name; known: cifar10, fashion_mnist, mnist, shapes")
def missing_folder(folder: Path) -> object:
    return {"data": str(folder / "nowhere")}


@refuse(r'did you mean "shapes"')
def misspelt_name(folder: Path) -> object:
    return {"data": "shape"}


@refuse("not a folder")
def a_file(folder: Path) -> object:
    return {"data": str(write(folder / "a.png"))}


@refuse(r"holds no file; looked for \.jpg, ")
def empty_folder(folder: Path) -> object:
    return None


@refuse(r"holds 2 files, none an image; looked for \.jpg, ")
def text_files(folder: Path) -> object:
    (folder / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    return None


@refuse("no image of 1 is left for validation; at least two are needed")
def one_image(folder: Path) -> object:
    write(folder / "a.png")
    return {"validation_fraction": 0.5, "split": "validation"}


@refuse("no image of 2 is left for validation; give `validation_fraction` above 0")
def nothing_held_out(folder: Path) -> object:
    many(folder, 2)
    return {"split": "validation"}


@refuse('unknown split "test"')
def unknown_split(folder: Path) -> object:
    return {"split": "test"}


@refuse(r"both metadata.csv and metadata.jsonl; keep one, or name one by `metadata_file`")
def two_metadata_files(folder: Path) -> object:
    metadata(folder, "{}")
    return metadata(folder, "x", name="metadata.csv")


@refuse(r"metadata.jsonl, line 2: not valid JSON")
def malformed_line(folder: Path) -> object:
    write(folder / "a.png")
    return metadata(folder, {"file_name": "a.png"}, '{"file_name": ')


@refuse(r"line 1: not valid JSON")
def deep_json(folder: Path) -> object:
    return metadata(folder, "[" * 100_000)


@refuse(r"line 1: longer than")
def endless_line(folder: Path) -> object:
    return metadata(folder, '"' + "x" * 2**20)


@refuse(r"line 1: expected \{")
def a_list_as_row(folder: Path) -> object:
    return metadata(folder, ["a.png"])


@refuse("not UTF-8")
def wrong_encoding(folder: Path) -> object:
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "\xff"}')
    return None


@refuse("lists no image")
def empty_metadata(folder: Path) -> object:
    return metadata(folder)


@refuse(r'line 1: no file "gone.png"')
def missing_image(folder: Path) -> object:
    return metadata(folder, {"file_name": "gone.png"})


@refuse('line 1: "sub" is not a file')
def a_folder_as_image(folder: Path) -> object:
    (folder / "sub").mkdir()
    return metadata(folder, {"file_name": "sub"})


@refuse("line 2: file_name must be")
def no_file_name(folder: Path) -> object:
    write(folder / "a.png")
    return metadata(folder, {"file_name": "a.png"}, {"text": "a"})


@refuse("no column with file names .file_name, .*, got text; name it by `image_column`")
def no_file_names(folder: Path) -> object:
    return metadata(folder, {"text": "a"})


@refuse(r"line 2: \"a.png\" has label 2, and 1 on line 1")
def two_labels(folder: Path) -> object:
    write(folder / "a.png")
    return metadata(folder, {"file_name": "a.png", "label": 1}, {"file_name": "./a.png", "label": 2})


@refuse("leaves the folder")
def absolute_path(folder: Path) -> object:
    return metadata(folder, {"file_name": OUTSIDE})


@refuse("leaves the folder")
def dotted_path(folder: Path) -> object:
    write(folder.parent / "outside.png")
    return metadata(folder, {"file_name": "../outside.png"})


@refuse("leaves the folder")
def windows_path(folder: Path) -> object:
    return metadata(folder, {"file_name": "C:\\a.png"})


@refuse("1 of 2 images have no label in metadata.jsonl, such as 0.png; give all or none one")
def label_partly_missing(folder: Path) -> object:
    many(folder, 2)
    return metadata(folder, {"file_name": "0.png"}, {"file_name": "1.png", "label": "cat"})


@refuse("1 of 2 images have no label in metadata.csv, such as 1.png")
def csv_label_partly_missing(folder: Path) -> object:
    many(folder, 2)
    return metadata(folder, "file_name,label", "0.png,cat", "1.png,", name="metadata.csv")


@refuse("names and some are numbers")
def mixed_labels(folder: Path) -> object:
    many(folder, 2)
    return metadata(folder, {"file_name": "0.png", "label": 1}, {"file_name": "1.png", "label": "cat"})


@refuse("label must be a name or a number from 0")
def huge_label(folder: Path) -> object:
    write(folder / "a.png")
    return metadata(folder, {"file_name": "a.png", "label": 10**9})


@refuse("text must be a string or a list of strings")
def numeric_text(folder: Path) -> object:
    write(folder / "a.png")
    return metadata(folder, {"file_name": "a.png", "text": 3})


@refuse("no column with file names .*, got photo, text; name it by `image_column`")
def csv_without_file_name(folder: Path) -> object:
    return metadata(folder, "photo,text", "a.png,b", name="metadata.csv")


@refuse("line 2: expected 2 columns")
def csv_with_a_short_row(folder: Path) -> object:
    return metadata(folder, "file_name,text", "a.png", name="metadata.csv")


@refuse(r"1 of 1 images cannot be read: a\\x1b\[31m\.png \(not an image\)")
def evil_name(folder: Path) -> object:
    (folder / "a\x1b[31m.png").write_text("no")
    return None


@pytest.mark.parametrize(("make", "message"), REFUSALS)
def test_refusals(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    made = make(folder)
    settings = made if isinstance(made, dict) else {}
    split = settings.pop("split", "train")
    before = sorted(os.listdir(folder))
    with pytest.raises(UserError, match=message) as caught:
        open_data(config(folder, **settings), split)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize(
    "settings",
    [{"image_size": 0}, {"image_size": 10**6}, {"crop": "left"}, {"validation_fraction": 1.0}, {"max_bad_images": -1}],
)
def test_settings_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(settings))}`"):
        DataConfig(**settings)  # type: ignore[arg-type]


# --- shapes through the same door


def test_shapes_by_name() -> None:
    settings = DataConfig(shapes_train=20, shapes_validation=10, image_size=16)
    train, validation = both(settings)
    assert isinstance(train, ImageData) and (len(train), len(validation)) == (20, 10)
    batch = collate([train[0], train[1, 7]])
    assert batch.images.shape == (2, 3, 16, 16) and batch.indices.tolist() == [0, 1] and len(batch) == 2
    with pytest.raises(UserError, match="`flip`"):
        open_data(dataclasses.replace(settings, flip=True))
