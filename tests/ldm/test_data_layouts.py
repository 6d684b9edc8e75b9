"""The layouts of folders that people have: what is read of each, what is said, and what is refused."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.data.config import DataConfig
from ldm.data.open import open_data
from ldm.evaluation.folder_images import FolderImages
from ldm.runtime.errors import UserError
from ldm.training.run_folder import recorded_settings
from ldm.training.tasks.settings import AutoencoderRun


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_CACHE", str(tmp_path_factory.mktemp("cache")))


def images(folder: Path, *names: str, size: int = 8) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (number * 7 % 256, len(name), 100)).save(path)
    return folder


def lines(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))


def rows(names: Iterable[str], column: str = "text", **more: Any) -> list[dict[str, Any]]:
    return [{"file_name": name, column: f"about {name}", **more} for name in names]


def texts(folder: Path, names: Iterable[str], ending: str = ".txt") -> None:
    for name in names:
        path = (folder / name).with_suffix(ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"about {name}\n")


ABC = ("a.png", "b.png", "c.png")
CLASSES = ("cat/1.png", "cat/2.png", "dog/3.png")
ALL = {name: (f"about {name}",) for name in ABC}
BY_FOLDER = {"cat/1.png": "cat", "cat/2.png": "cat", "dog/3.png": "dog"}


@dataclass(frozen=True)
class Layout:
    make: Callable[[Path], object]
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by the end of the path
    classes: dict[str, str] = field(default_factory=dict)
    held_out: int = 0
    said: tuple[str, ...] = ()  # in the block
    warned: tuple[str, ...] = ()  # one for each warning, and no other
    settings: dict[str, Any] = field(default_factory=dict)
    images: int = 3


def in_train(folder: Path) -> None:
    images(folder / "train", *ABC)
    lines(folder / "train" / "metadata.jsonl", rows(ABC))


def in_train_by_path(folder: Path) -> None:
    images(folder / "train", *ABC)
    lines(folder / "train" / "metadata.jsonl", [{"file_name": f"train/{n}", "text": f"about {n}"} for n in ABC])


def own_split(folder: Path) -> None:
    images(folder, *(f"train/{name}" for name in ABC), "val/d.png", "test/e.png")
    lines(folder / "train" / "metadata.jsonl", rows(ABC))
    lines(folder / "val" / "metadata.jsonl", rows(["d.png"]))


def parquet_list(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images(folder, *ABC)
    parquet.write_table(pyarrow.Table.from_pylist(rows(ABC)), folder / "metadata.parquet")


def columns(column: str, **more: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        images(folder, *ABC)
        lines(folder / "metadata.jsonl", rows(ABC, column, **more))

    return make


def own_columns(folder: Path) -> None:
    images(folder, *ABC)
    lines(folder / "list.csv", ["photo,words,kind", *(f"{name},about {name},{name[0]}" for name in ABC)])


def beside(ending: str) -> Callable[[Path], None]:
    return lambda folder: texts(images(folder, *ABC), ABC, ending)


def parallel(folder: Path) -> None:
    images(folder / "images", *CLASSES)
    texts(folder / "text", CLASSES)


def list_in_each_class(folder: Path) -> None:
    images(folder, *CLASSES)
    for kind in ("cat", "dog"):
        own = [name.split("/")[1] for name in CLASSES if name.startswith(kind)]
        lines(folder / kind / "metadata.jsonl", rows(own))


def stylegan(folder: Path, labels: Any = ((0, 4), (1, 7), (2, 4))) -> None:
    names = images(folder, "00000/0.png", "00000/1.png", "00001/2.png") and (
        "00000/0.png",
        "00000/1.png",
        "00001/2.png",
    )
    entries = None if labels is None else [[names[index], label] for index, label in labels]
    (folder / "dataset.json").write_text(json.dumps({"labels": entries}))


def coco(folder: Path) -> None:
    images(folder, "train2017/a.png", "train2017/b.png", "val2017/c.png", "test2017/d.png")
    for split, names in (("train2017", ["a.png", "b.png", "gone.png"]), ("val2017", ["c.png"])):
        content = {
            "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
            "annotations": [{"image_id": n, "caption": f"{w} {name}"} for n, name in enumerate(names) for w in "xy"],
        }
        lines(folder / "annotations" / f"captions_{split}.json", [content])


def hub_cache(folder: Path) -> None:
    images(folder.parent / "blobs", *ABC)
    lines(folder.parent / "blobs" / "list", rows(ABC))
    for name, target in (*((name, name) for name in ABC), ("metadata.jsonl", "list")):
        (folder / name).symlink_to(f"../blobs/{target}")


def linked_folder(folder: Path) -> None:
    images(folder.parent / "elsewhere", *ABC)
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    lines(folder / "metadata.jsonl", [{"file_name": f"sub/{n}", "text": f"about {n}"} for n in ABC])


def partly(folder: Path) -> None:
    images(folder, *ABC)
    lines(folder / "metadata.jsonl", [*rows(ABC[:2]), {"file_name": "c.png"}])


def two_rows(folder: Path) -> None:
    images(folder, *ABC)
    lines(folder / "metadata.jsonl", [*rows(ABC), {"file_name": "a.png", "text": "more"}, rows(ABC)[1]])


def list_over_folders(folder: Path) -> None:
    lines(images(folder, *CLASSES) / "metadata.jsonl", rows(CLASSES))


def stray(folder: Path) -> None:
    images(folder, *CLASSES, "overview.png", ".hidden.png")
    (folder / "fish").mkdir()


def unread(folder: Path) -> None:
    images(folder, *ABC)
    (folder / "labels.csv").write_text("a,b")
    (folder / "a.json").write_text("{}")
    (folder / "d.svg").write_text("x")
    (folder / "LICENSE.txt").write_text("x")


def unlisted(folder: Path) -> None:
    lines(images(folder, *ABC, "d.png") / "metadata.jsonl", rows(ABC))


TWICE = {"a.png": ("x a.png", "y a.png"), "b.png": ("x b.png", "y b.png"), "c.png": ("x c.png", "y c.png")}
CLASS_TEXTS = {name: (f"about {name}",) for name in CLASSES}
LAYOUTS = {
    "a list in train": Layout(in_train, ALL, said=("train/metadata.jsonl, 3 rows",)),
    "a list in train with its paths": Layout(in_train_by_path, ALL),
    "train, val and test": Layout(
        own_split, {**ALL, "d.png": ("about d.png",)}, held_out=1, images=4,
        said=("1 of them (the folder's own split)", "1 image: of the split test/, such as"),
    ),
    "class folders in train and val": Layout(
        lambda folder: images(folder, *(f"train/{n}" for n in CLASSES), "val/cat/9.png"),
        classes={**BY_FOLDER, "9.png": "cat"}, held_out=1, images=4,
    ),
    "metadata.parquet": Layout(parquet_list, ALL, said=("metadata.parquet, 3 rows",)),
    **{
        name: Layout(columns(name), ALL, said=(f'captions in column "{name}", a usual name',))
        for name in ("caption", "prompt", "en_text", "Text")
    },
    "a usual label": Layout(columns("text", category="k"), ALL, classes=dict.fromkeys(ABC, "k")),
    "two captions": Layout(columns("text", prompt="p"), ALL, warned=("1 column (prompt): another was chosen",)),
    "unknown columns": Layout(columns("words"), warned=("1 column (words): no usual name of captions",)),
    "further columns": Layout(columns("text", url="u"), ALL, said=("not used: 1 column (url)",)),
    "own list and columns": Layout(
        own_columns, ALL, classes={name: name[0] for name in ABC},
        settings={"metadata_file": "list.csv", "image_column": "photo", "text_column": "words", "label_column": "kind"},
    ),
    ".txt": Layout(beside(".txt"), ALL, said=("captions: 3 files (.txt) beside the images",)),
    ".caption": Layout(beside(".caption"), ALL),
    "a folder of captions": Layout(parallel, CLASS_TEXTS, classes=BY_FOLDER, settings={"captions_from": "text"}),
    "a folder of captions, not named": Layout(
        parallel, classes=BY_FOLDER, warned=("3 files ending .txt: may hold captions or classes",)
    ),
    "a list in each class": Layout(
        list_in_each_class, {name: (f"about {name.split('/')[1]}",) for name in CLASSES}, classes=BY_FOLDER
    ),
    "classes and .txt": Layout(
        lambda folder: texts(images(folder, *CLASSES), CLASSES), CLASS_TEXTS, classes=BY_FOLDER
    ),
    "dataset.json": Layout(stylegan, classes={"0.png": "4", "1.png": "7", "2.png": "4"}),
    "dataset.json, one-hot": Layout(
        lambda folder: stylegan(folder, ((0, [1, 0]), (1, [0, 1]), (2, [1, 0]))),
        classes={"0.png": "0", "1.png": "1", "2.png": "0"},
    ),
    "dataset.json without labels": Layout(
        lambda folder: stylegan(folder, None), said=("2 sub-folders (00000, 00001): dataset.json gives no classes",)
    ),
    "dataset.json of vectors": Layout(
        lambda folder: stylegan(folder, ((0, [0.5, 0]), (1, [0, 1]), (2, [1, 0]))),
        warned=("1 label: a vector", "2 sub-folders (00000, 00001): dataset.json gives no classes"),
    ),
    "classes one level down": Layout(
        lambda folder: images(folder / "images", *CLASSES), classes=BY_FOLDER, said=("the sub-folders of images/",)
    ),
    "classes below train": Layout(lambda folder: images(folder / "train", *CLASSES), classes=BY_FOLDER),
    "a stray image": Layout(
        stray, classes=BY_FOLDER,
        said=('1 image: beside the class folders, such as "overview.png"', "1 hidden file", "1 folder: empty"),
    ),
    "a row a caption": Layout(
        two_rows, {**ALL, "a.png": ("about a.png", "more")}, said=("4 captions in all", "1 row: the same image")
    ),
    "COCO": Layout(
        coco, TWICE, held_out=1, said=("1 image: of the split test2017/", "1 image: listed, but there is no such file")
    ),
    "the cache of the hub": Layout(hub_cache, ALL),
    "a linked folder": Layout(linked_folder, ALL),
    "some without a caption": Layout(
        partly, {**ALL, "c.png": ("",)}, said=("2 of 3 images have one",), warned=("without a caption: 1 of 3 images",)
    ),
    "a list over folders": Layout(
        list_over_folders, CLASS_TEXTS, warned=("2 sub-folders (cat, dog): metadata.jsonl gives no classes",)
    ),
    "a list over classes": Layout(
        list_over_folders, CLASS_TEXTS, classes=BY_FOLDER, settings={"folder_classes": "yes"}
    ),
    "files that are not read": Layout(
        unread, said=('1 file ending .txt: neither an image nor a list, such as "LICENSE.txt"',),
        warned=("1 file ending .json: beside images", "1 file ending .svg: an image", "1 file ending .csv: may hold"),
    ),
    "links to nothing": Layout(
        lambda folder: (images(folder, *ABC) / "d.png").symlink_to("../blobs/gone"),
        warned=("1 name: a broken link, a pipe or a device",),
    ),
    "a setting without effect": Layout(
        lambda folder: images(folder, *ABC), settings={"text_column": "words"},
        warned=("1 setting (`text_column`): this folder has no list with columns",),
    ),
    "copies": Layout(
        lambda folder: [images(folder, name) for name in (*ABC[:2], "more/x.png")] and images(folder, "c.png", "d.png"),
        images=5, said=("copies: 2 images with the bytes of another",), settings={"folder_classes": "no"},
    ),
    "images that are not listed": Layout(unlisted, ALL, said=("1 image: not listed in metadata.jsonl",)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_and_said(tmp_path: Path, name: str) -> None:
    layout, folder = LAYOUTS[name], tmp_path / "data"
    folder.mkdir()
    layout.make(folder)
    settings = {"validation_fraction": 0.0, **layout.settings}
    config = DataConfig(data=str(folder), image_size=8, **settings)
    splits = [open_data(config, split) for split in ("train", "validation")[: 1 + (layout.held_out > 0)]]
    captions, classes = {}, {}
    for data in splits:
        for index in range(len(data)):
            path = data.file_name(index)  # type: ignore[attr-defined]
            captions[path], classes[path] = data.captions(index), data.label(index)
    assert len(captions) == layout.images and len(splits[-1]) == (layout.held_out or layout.images)
    assert all(data.class_names == splits[0].class_names for data in splits)
    for found, expected in ((captions, layout.captions), (classes, layout.classes)):
        for path, value in found.items():
            end = next((end for end in expected if path == end or path.endswith(f"/{end}")), None)
            if found is classes:
                value = data.class_names[value] if value >= 0 else None  # type: ignore[assignment,call-overload,index]
            assert value == (expected[end] if end else None if found is classes else ()), path
    report = splits[0].report
    block, warnings = "\n".join(report.lines()), report.warnings()
    for words in layout.said:
        assert words in block
    assert len(warnings) == len(layout.warned)
    for words, warning in zip(layout.warned, warnings, strict=True):
        assert words in warning
    assert report.lines() == splits[-1].report.lines(), "one block for both splits"


def both_captions(folder: Path) -> None:
    lines(images(folder, *ABC) / "metadata.jsonl", rows(ABC))
    (folder / "a.txt").write_text("another")


def twice_listed(folder: Path) -> None:
    list_in_each_class(folder)
    lines(folder / "metadata.jsonl", rows(CLASSES))


TWO_READINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "captions in a list and in files": (both_captions, "give `captions_from` metadata or files"),
    "two columns of captions": (columns("prompt", caption="c"), r"\(caption, prompt\); name one by `text_column`"),
    "two columns of classes": (columns("text", category=1, species=2, target=3), r"\(category, target\).*label_column"),
    "two lists": (
        lambda folder: (columns("text")(folder), lines(folder / "metadata.csv", ["file_name", "a.png"])),
        "both metadata.csv and metadata.jsonl; keep one, or name one by `metadata_file`",
    ),
    "an image in two lists": (twice_listed, "has captions in .* and in .*; name one list by `metadata_file`"),
    "images beside folders": (
        lambda folder: images(folder, *CLASSES, *ABC), "with `folder_classes` yes they are left out, with no"
    ),
    "splits or classes": (
        lambda folder: images(folder, "train/a.png", "val/b.png", "extra/c.png"), "give `folder_classes` yes"
    ),
    "images beside a split": (lambda folder: images(folder, "train/a.png", *ABC), "name the folder .* by `data`"),
    "two validation splits": (
        lambda folder: images(folder, "train/a.png", "val/b.png", "validation/c.png"), "of one split; name one by `data"
    ),
    "no training split": (lambda folder: images(folder, "val/a.png", "test/b.png"), "none for training; name one"),
    "other classes held out": (
        lambda folder: images(folder, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/c/4.png"),
        r"val/ has classes that train/ lacks \(c\)",
    ),
    "lines of a caption file": (
        lambda folder: (images(folder, *ABC), (folder / "a.txt").write_text("one\ntwo\n")),
        "a.txt: 2 lines, which may be one caption or several; give `caption_lines` one or each",
    ),
    "two columns of one name": (
        lambda folder: lines(images(folder, *ABC) / "metadata.csv", ["file_name,text,text", "a.png,x,y"]),
        'two columns are named "text"',
    ),
    "two caption files": (
        lambda folder: (beside(".txt")(folder), (folder / "a.caption").write_text("x")), "a.png: has two captions"
    ),
    "one COCO image in two folders": (
        lambda folder: (coco(folder), images(folder, "train2017/more/a.png")),
        '"a.png" may be train2017/a.png or train2017/more/a.png',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWO_READINGS)
def test_two_readings_are_refused_with_the_setting_that_decides(tmp_path: Path, name: str) -> None:
    make, message = TWO_READINGS[name]
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError, match=message) as caught:
        open_data(DataConfig(data=str(folder), image_size=8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TWO_READINGS)
def test_the_images_of_a_folder_are_evaluated_whatever_its_captions_and_classes(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    TWO_READINGS[name][0](folder)
    refused = {"splits or classes", "two validation splits", "no training split", "other classes held out"}
    if name in refused | {"one COCO image in two folders", "two columns of one name"}:
        with pytest.raises(UserError):
            FolderImages(folder)
        return
    images = FolderImages(folder)
    assert len(images) >= 3 and not images.report.warnings()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"caption_lines": "one"}, ("one two",)), ({"caption_lines": "each"}, ("one", "two"))],
)
def test_the_lines_of_a_caption_file(tmp_path: Path, settings: dict[str, Any], expected: tuple[str, ...]) -> None:
    images(tmp_path, *ABC)
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert open_data(DataConfig(data=str(tmp_path), validation_fraction=0.0, **settings)).captions(0) == expected


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "C:\\a.png", "sub/../../outside.png"])
@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv", "dataset.json"])
def test_a_path_in_a_list_does_not_leave_the_folder(tmp_path: Path, name: str, kind: str) -> None:
    folder = images(tmp_path / "data", "a.png")
    images(tmp_path, "outside.png")
    listed = {"metadata.jsonl": [{"file_name": name}], "metadata.csv": ["file_name", name]}
    lines(folder / kind, listed.get(kind, [{"labels": [[name, 0]]}]))
    with pytest.raises(UserError, match="leaves the folder"):
        open_data(DataConfig(data=str(folder)))


def ppm(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"P6 2 2 255\n" + bytes([shade] * 12))


GOLDEN = {  # of the training and the held-out part, by the code of that time
    "classes": ("b28ebc1a40db", "7844b0c7f78e"),
    "down": ("d92f61897df6", "01be3d29fedc"),
    "list": ("faf736f2a0d4", "eab74d4e26db"),
}


def test_the_rules_of_version_1_are_kept(tmp_path: Path) -> None:
    """Folders that are read otherwise today have the fingerprints that they had."""
    for number, name in enumerate(("cat/1.ppm", "cat/2.ppm", "dog/3.ppm", "dog/4.ppm")):
        ppm(tmp_path / "classes" / name, number)
        ppm(tmp_path / "down" / "images" / name, number)
        ppm(tmp_path / "list" / name.replace("/", ""), number)
    listed = sorted(path.name for path in (tmp_path / "list").iterdir())
    for folder, name in (("cat", "1.ppm"), ("dog", "3.ppm")):
        lines(tmp_path / "classes" / folder / "metadata.jsonl", [{"file_name": name, "text": "x"}])
    lines(tmp_path / "list" / "metadata.csv", ["file_name,text,label,prompt", *(f"{n},,{n[3]},p" for n in listed)])
    prints = {}
    for name in ("classes", "down", "list"):
        config = DataConfig(data=str(tmp_path / name), image_size=2, validation_fraction=0.3, layout_version=1)
        prints[name] = tuple(open_data(config, split).fingerprint[:12] for split in ("train", "validation"))
    assert prints == GOLDEN
    for name in GOLDEN:
        config = DataConfig(data=str(tmp_path / name), image_size=2, validation_fraction=0.3)
        assert open_data(config).fingerprint[:12] != GOLDEN[name][0]


def test_a_run_from_before_keeps_its_reading(ldm, tmp_path: Path) -> None:
    folder = images(tmp_path / "data" / "images", *(f"{kind}/{n}.png" for kind in "ab" for n in range(8)), size=16)
    tiny = (
        "--image-size", 16, "--device", "cpu", "--train-batch-size", 8, "--validation-images", 2,
        "--norm-num-groups", 4, "--block-out-channels", 8, 8, "--no-attention", "--latent-channels", 4,
        "--calibration-images", 8,
    )  # fmt: skip
    start = ("train", "autoencoder", "--data", folder.parent, *tiny)
    command = (*start, "--max-train-steps", 2, "--output-dir", tmp_path / "run")
    assert ldm(*command, "--layout-version", 1, "--train-seconds", 0.001).code == 0
    recorded = tmp_path / "run" / "config.yaml"
    new = ("layout_version", "metadata_file", "captions_from", "caption_lines", "folder_classes")
    old = [line for line in recorded.read_text().splitlines(True) if not line.strip().startswith(new)]
    recorded.write_text("".join(old))
    again = ldm(*command, "--train-seconds", 0)
    assert again.code == 0 and "by the rules of --layout-version 1" in again.out, again.err
    assert recorded_settings(AutoencoderRun, tmp_path / "run").dataset.layout_version == 1
    other = ldm(*start, "--max-train-steps", 1, "--output-dir", tmp_path / "new")
    assert other.code == 0 and "classes: 2: a 8, b 8" in other.out
    evaluated = ldm("evaluate", tmp_path / "run", "--metrics", "psnr", "--split", "train")
    assert evaluated.code == 0 and "by the rules of --layout-version 1" in evaluated.out, evaluated.err
