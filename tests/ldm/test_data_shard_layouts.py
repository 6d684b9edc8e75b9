"""Shards as people make them: captions and classes in other members, keys and columns, splits by name, rows of one
image; and hostile ones, which are refused before they take memory."""

import io
import json
import resource
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm.data import parquet_file
from ldm.data.config import DataConfig
from ldm.data.open import open_data
from ldm.runtime.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))


def png(number):
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (number, 90, 255 - number)).save(content, "png")
    return content.getvalue()


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def opened(path, split="train", **settings):
    return open_data(DataConfig(**{"data": str(path), "image_size": 16, "validation_fraction": 0.0, **settings}), split)


def contents(data):
    """{red of an image: its captions, the name of its class}."""
    found = {}
    for i in range(len(data)):
        red = round(float((data[i].image[0, 0, 0] + 1) * 127.5))
        found[red] = data.captions(i), data.class_names[data.label(i)] if data.label(i) >= 0 else None
    return found


def sample(number, **fields):
    """Members of two samples: each value is a function of the number."""
    return {f"{k}.{name.replace('_', '.')}": value(k) for k in (1, 2) for name, value in {"png": png, **fields}.items()}


def words(k):
    return f"caption {k}"


def row(**values):
    return lambda k: json.dumps({name: value(k) for name, value in values.items()})


CAPTIONS = {1: (("caption 1",), None), 2: (("caption 2",), None)}
CLASSES = {1: (("caption 1",), "dog 1"), 2: (("caption 2",), "dog 2")}
TARS = {
    ".cap": (sample(0, cap=words), {}, CAPTIONS),
    ".caption": (sample(0, caption=words), {}, CAPTIONS),
    "json, caption": (sample(0, json=row(caption=words, url=str)), {}, CAPTIONS),
    "json, en_text": (sample(0, json=row(en_text=words)), {}, CAPTIONS),
    "json, prompt and class_name": (sample(0, json=row(prompt=words, class_name=lambda k: f"dog {k}")), {}, CLASSES),
    "img2dataset": (sample(0, txt=words, json=row(caption=lambda k: "not this", key=str)), {}, CAPTIONS),
    "json, a column of its own": (sample(0, json=row(alt=words, text=str)), {"text_column": "alt"}, CAPTIONS),
    "a member named by the column": (sample(0, txt=str, en_txt=words), {"text_column": "en.txt"}, CAPTIONS),
    "a class named by the column": (
        sample(0, txt=words, kind_txt=lambda k: f"dog {k}"), {"label_column": "kind.txt"}, CLASSES,
    ),
    "the image named by the column": (
        sample(0, txt=words, jpg=lambda k: png(k + 100)), {"image_column": "jpg"},
        {101: CAPTIONS[1], 102: CAPTIONS[2]},
    ),
    "dotted fields": (
        {f"{k}.{name}": content for k in (1, 2) for name, content in
         {"rgb.png": png(k), "seg.png": b"x", "cap.txt": words(k)}.items()},
        {"tar_fields": ("rgb.png", "cap.txt")}, CAPTIONS,
    ),
    "keys with a dot": (
        {f"0.{k}_a.{name}": content for k in (1, 2) for name, content in {"png": png(k), "txt": words(k)}.items()},
        {"tar_fields": ("png", "txt")}, CAPTIONS,
    ),
    "both captions, listed": (
        sample(0, txt=words, cap=lambda k: f"or {k}"), {"tar_fields": ("png", "txt", "cap")},
        {k: ((f"caption {k}", f"or {k}"), None) for k in (1, 2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
def test_tar_shards_of_many_makers(tmp_path, name):
    members, settings, expected = TARS[name]
    assert contents(opened(tar(tmp_path / "a.tar", members), **settings)) == expected
    assert contents(opened(tmp_path / "a.tar", **settings)) == expected, "from the cached index"


AMBIGUOUS = {
    "two captions": (sample(0, txt=words, cap=str), "has a caption in .cap as well; name one by `text_column`"),
    "two keys": (
        sample(0, json=row(caption=words, prompt=str)), "several columns may be its captions .*`text_column`",
    ),
    "a dot in the key": ({"0.5_a.jpg": b"x"}, "may be the field 5_a.jpg of a sample, or a key with a dot; .*`tar_f"),
    "only a dotted image": ({"1.rgb.png": png(1), "1.s.png": png(1)}, "name the fields by `tar_fields`: rgb.png, or"),
    "two images": ({"1.png": png(1), "1.jpg": png(1)}, "second image of its sample; .*`image_column`"),
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_two_readings_are_refused_with_the_setting_that_decides(tmp_path, name):
    members, message = AMBIGUOUS[name]
    with pytest.raises(UserError, match=message):
        opened(tar(tmp_path / "a.tar", members))


def test_fields_and_keys_that_are_not_used_are_reported(tmp_path):
    report = opened(tar(tmp_path / "a.tar", sample(0, json=row(story=words, url=str), npy=str))).report
    warnings = " ".join(report.warnings())
    assert "story, url" in warnings and "no usual name of captions or classes" in warnings
    assert "2 members ending .npy" in warnings
    plain = opened(tar(tmp_path / "b.tar", sample(0, txt=words, json=row(url=str)))).report
    assert not plain.warnings() and any("(url)" in item.what for item in plain.reading.passed_over)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize(
    ("train", "held_out", "unused"),
    [
        ("train-0", "validation-0", None),
        ("a-000", "a-validation-000", None),
        ("imagenet_train_1", "imagenet_val_1", None),
        ("x", "xValidation", None),
        ("train-0", "test-0", None),
        ("train-0", "val-0", "test-0"),
        ("train/0", "validation/0", None),
    ],
)
def test_shards_of_other_splits_are_held_out(tmp_path, kind, train, held_out, unused):
    for number, name in enumerate((train, held_out, unused)):
        if name and kind == "tar":
            tar(tmp_path / "d" / f"{name}.tar", {"0.png": png(number)})
        elif name:
            table(tmp_path / "d" / f"{name}.parquet", image=[png(number)])
    data = str(tmp_path / "d" / "*" / f"*.{kind}") if "/" in train else tmp_path / "d"
    parts = opened(data), opened(data, "validation", validation_fraction=0.5)
    assert [list(contents(part)) for part in parts] == [[0], [1]]
    assert any("held out" in line for line in parts[0].report.reading.fields)
    assert len([line for line in parts[0].report.warnings() if "1 shard" in line]) == (unused is not None)


def test_names_that_only_contain_such_a_word_are_for_training(tmp_path):
    for number, name in enumerate(("latest", "contest-1", "valley", "values", "retrain")):
        tar(tmp_path / "d" / f"{name}.tar", {f"{number}.png": png(number)})
    assert len(opened(tmp_path / "d")) == 5


def test_a_folder_of_held_out_shards_alone_is_refused_but_not_a_pattern_of_them(tmp_path):
    tar(tmp_path / "d" / "validation-0.tar", {"0.png": png(0)})
    with pytest.raises(UserError, match=r"all shards are of the split validation, none is for training.*/\*\.tar"):
        opened(tmp_path / "d")
    data = opened(tmp_path / "d" / "*.tar")
    assert len(data) == 1 and any("read as one set" in line for line in data.report.reading.fields)
    assert len(opened(tmp_path / "d", layout_version=1)) == 1


def test_rows_of_one_image_are_its_captions(tmp_path):
    """By path or by an id, and by the bytes; equal bytes without a common name stay apart, and are reported."""
    images = [png(1), png(2), png(1), png(2)]
    texts = ["a", "b", "c", "b"]
    paths = [{"bytes": content, "path": f"{i % 2}.png"} for i, content in enumerate(images)]
    expected = {1: (("a", "c"), None), 2: (("b",), None)}
    assert contents(data := opened(table(tmp_path / "a.parquet", image=paths, text=texts))) == expected
    assert "4 rows of 2 images" in " ".join(data.report.reading.fields)
    assert (
        contents(opened(table(tmp_path / "b.parquet", image=images, caption=texts, image_id=[7, 8, 7, 8]))) == expected
    )
    apart = opened(table(tmp_path / "c.parquet", image=images, text=texts))
    assert len(apart) == 4 and "2 repetitions of an image" in "\n".join(apart.report.lines())
    assert len(opened(table(tmp_path / "d.parquet", image=paths, text=texts), layout_version=1)) == 4
    with pytest.raises(UserError, match=r'the image "0\.png" has label 3 here and 1 before'):
        opened(table(tmp_path / "e.parquet", image=paths, label=[1, 2, 3, 2]))


@pytest.mark.parametrize("column", ["text", "caption", "prompt", "en_text", "Caption"])
def test_usual_names_of_columns_are_read_and_others_reported(tmp_path, column):
    data = opened(table(tmp_path / "a.parquet", img=[png(1)], **{column: ["words"]}, category=["dog"], url=["x"]))
    assert contents(data) == {1: (("words",), "dog")}
    assert any("(url)" in item.what for item in data.report.reading.passed_over)


# --- hostile files: kilobytes that would take gigabytes


def dictionary_of_one_large_value(path):
    value = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(np.zeros(60, np.int32)), pyarrow.array([bytes(48 * 2**20)])
    )
    parquet.write_table(pyarrow.table({"image": value}), path, compression="zstd", dictionary_pagesize_limit=2**30)


def one_large_page(path, size=500):
    values = pyarrow.array([bytes(size * 2**18)] * 4, pyarrow.large_binary())
    parquet.write_table(pyarrow.table({"image": values}), path, compression="zstd", use_dictionary=False)


def many_large_captions(path):
    texts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(np.zeros(200, np.int32)), pyarrow.array(["x" * (90 * 2**20)])
    )
    parquet.write_table(
        pyarrow.table({"image": [png(1)] * 200, "text": texts}),
        path,
        compression="zstd",
        dictionary_pagesize_limit=2**30,
    )


def long_headers(path):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(80):
            archive.addfile(tarfile.TarInfo(f"{number}" + "x" * (2**20 - 100)))


def deep_headers(path):
    """Extended headers about extended headers, each of which the standard library reads within the one before."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 13
    path.write_bytes((header.tobuf(tarfile.USTAR_FORMAT) + b"13 comment=x\n".ljust(512, b"\0")) * 3000)


def holes(path):
    member = tarfile.TarInfo("a.png")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # the map goes on in the next block
    block = b"00000000001\x0000000000001\x00" * 21 + b"\x01" + bytes(7)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + block * 60_000)


def png_of_zeros(width, height, colour):
    channels = {2: 3, 6: 4}[colour]

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, colour, 0, 0, 0])
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1 + width * channels)) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def many_large_images(path):
    """Each of them is refused or read alone; threads must not hold several at one time."""
    content = png_of_zeros(7000, 7000, 6) + bytes(20_000)
    tar(path, {f"{number}.png": content for number in range(4)})


HOSTILE = {
    "dictionary.parquet": (dictionary_of_one_large_value, "images cannot be read|take .* bytes"),
    "page.parquet": (one_large_page, "takes more than 384 MiB of memory"),
    "captions.parquet": (many_large_captions, "text of more than|takes more than 384 MiB"),
    "headers.tar": (long_headers, "a name of|long names and extra headers"),
    "deep.tar": (deep_headers, "not a whole tar file"),
    "holes.tar": (holes, "with holes"),
    "images.tar": (many_large_images, ""),
}
READ = """
import sys
from ldm.data.config import DataConfig
from ldm.data.open import open_data
from ldm.data import verify
from ldm.runtime.errors import UserError
verify._cpus = lambda: 4
try:
    print("read", len(open_data(DataConfig(data=sys.argv[1], image_size=16, validation_fraction=0.0))))
except UserError as error:
    print("refused", error)
status = open("/proc/self/status").read()  # getrusage begins with the peak of the process that forked
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", HOSTILE)
def test_memory_of_hostile_shards_stays_below_a_gigabyte(tmp_path, name):
    make, message = HOSTILE[name]
    make(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 100 * 2**20
    command = [sys.executable, "-c", READ, str(tmp_path / name)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    outcome, peak = found.stdout.splitlines()
    assert int(peak) < 1024, found.stdout
    import re

    assert re.search(message, outcome) if message else outcome == "read 4", outcome


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit")
def test_a_page_that_unpacks_to_too_much_is_refused_and_the_limit_is_taken_back(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_file, "_MEMORY", 24 * 2**20)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    one_large_page(tmp_path / "a.parquet", size=40)
    with pytest.raises(UserError, match="takes more than 24 MiB of memory; write it with smaller pages"):
        opened(tmp_path / "a.parquet")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before and not list((tmp_path / "cache").glob("*"))
