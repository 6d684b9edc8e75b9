"""What people and broken disks put into files and flags: every case has its outcome, fixed before it is run.

same: accepted, and nothing differs from the case that is not changed; refused: exit code 2, one line that names the
place, and nothing made or left over. No traceback, no signal, less than 10 s and 1 GiB in all of them. The suite runs a
seeded choice of each kind; `-m slow` runs all, about 4,000.
"""

import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from PIL import Image, PngImagePlugin

WORKER = Path(__file__).parents[1] / "fuzz_worker.py"
SECONDS, BYTES = 10, 2**30
SAMPLE = [
    "sample",
    "model",
    "--device",
    "cpu",
    "--num-images",
    "1",
    "--num-inference-steps",
    "1",
    "--seed",
    "0",
    "--output-dir",
    "out",
]
PROMPT = ("--prompt", "a red circle")
DIGITS = "9" * 5000


@dataclass(frozen=True)
class Case:
    kind: str  # base folder and arguments, see `bases`
    name: str
    change: object  # (folder) -> arguments, or None for those of the kind
    outcome: str  # same, refused
    words: tuple = ()  # in the message


# JSON

WRONG = {  # values of another type
    "int": ["x", "3", 1.5, True, None, [], {}, 10**30, -(10**30)],
    "float": ["x", "0.5", True, None, [], {}],
    "str": [1, 1.5, True, None, [], {}],
    "bool": [0, 1, "true", None, [], {}],
    "list": [1, "x", True, None, {}],
    "object": [1, "x", True, None, []],
}


def wrong_values(kind):
    """Values that are not of a type such as int, int?, [str], int|[int] (? is null, [] a list)."""
    kinds = kind.rstrip("?").split("|")
    element = next((part[1:-1] for part in kinds if part.startswith("[")), None)
    plain = [part for part in kinds if not part.startswith("[")]
    values = WRONG[plain[0]] if plain else WRONG["list"]
    for value in values:
        if not ((value is None and kind.endswith("?")) or (value == [] and element)):
            yield value
    if element:
        yield from ([value] for value in WRONG[element])


def texts_of(text):
    """Damaged forms of a JSON text: name -> bytes."""
    inner = text.strip()[1:-1].strip()
    many = ", ".join(f'"_key {number}": [{number}]' for number in range(90_000))
    return {
        "cut in the middle": text[: len(text) // 2].encode(),
        "empty": b"",
        "not UTF-8": text.replace('"', '"\xff', 1).encode("latin-1", "replace"),
        "zeros": b"\0" * 100,
        "two documents": f"{text}\n{text}".encode(),
        "a list": b"[]",
        "null": b"null",
        "a number": b"3",
        "a string": b'"x"',
        "one key twice": f'{{"_x": 1, "_x": 2, {inner}}}'.encode(),
        "40,000 levels": f'{{"_x": {"[" * 40_000}{"]" * 40_000}, {inner}}}'.encode(),
        "5,000 digits": f'{{"_x": {DIGITS}, {inner}}}'.encode(),
        "NaN": f'{{"_x": NaN, {inner}}}'.encode(),
        "half a surrogate pair": f'{{"_x": "\\ud800", {inner}}}'.encode(),
        "single quotes": text.replace('"', "'").encode(),
    }, {
        "an unknown key": f'{{"_x": {{"y": [1]}}, {inner}}}'.encode(),
        "90,000 unknown keys": f"{{{many}, {inner}}}".encode(),
        "a byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "blanks": f"\n\n \t{text}\n\n".encode(),
    }


def replace_bytes(path, content):
    path.unlink()  # the base shares it
    path.write_bytes(content)


def set_key(path, key, value):
    """`a.b` of a JSON file."""
    content = json.loads(path.read_text())
    *parents, last = key.split(".")
    entry = content
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    replace_bytes(path, json.dumps(content).encode())


def reseal(folder, name):
    """Make the manifest of a checkpoint agree with a file that was changed."""
    import hashlib

    content = (folder / name).read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = json.loads((folder / "manifest.json").read_text())
    replace_bytes(folder / "manifest.json", json.dumps(manifest | {name: entry}).encode())


def json_cases(kind, file, types, values=(), *, also_same=(), word=None, sealed=False, finite=True):
    """Cases of one JSON file of a kind: damaged text, keys of another type, and values out of their range."""
    word = word or Path(file).name

    def changed(function):
        def change(folder):
            path = folder / file
            function(path)
            if sealed:
                reseal(path.parent, path.name)

        return change

    def text(path, number, name):
        replace_bytes(path, texts_of(path.read_text())[number][name])

    bad, good = texts_of('{"a": 1}')
    for number, (names, outcome) in enumerate(((bad, "refused"), (good, "same"))):
        for name in names:
            own = "same" if name == "NaN" and not finite else outcome
            change = changed(lambda path, number=number, name=name: text(path, number, name))
            yield Case(kind, f"{file}: {name}", change, own, (word,) if own == "refused" else ())
    for key, type_ in types.items():
        for value in wrong_values(type_):
            change = changed(lambda path, key=key, value=value: set_key(path, key, value))
            yield Case(kind, f"{file}: {key} = {value!r:.40}", change, "refused", (word,))
    for outcome, table in (("refused", values), ("same", also_same)):
        for key, value in table:
            change = changed(lambda path, key=key, value=value: set_key(path, key, value))
            yield Case(kind, f"{file}: {key} = {value!r:.40}", change, outcome, (word,) if outcome == "refused" else ())


def model_cases():
    yield from json_cases(
        "sample",
        "model/unet/config.json",
        {
            "_class_name": "str",
            "sample_size": "int?",
            "in_channels": "int",
            "out_channels": "int",
            "freq_shift": "int",
            "flip_sin_to_cos": "bool",
            "down_block_types": "[str]",
            "up_block_types": "[str]",
            "norm_eps": "float",
            "block_out_channels": "[int]",
            "layers_per_block": "int|[int]",
            "dropout": "float",
            "norm_num_groups": "int",
            "attention_head_dim": "int|[int]",
            "use_linear_projection": "bool",
            "resnet_time_scale_shift": "str",
            "transformer_layers_per_block": "int|[int]",
            "cross_attention_dim": "int|[int]",
            "num_class_embeds": "int?",
        },
        [
            ("up_block_types", [1]),
            ("norm_eps", -1),
            ("dropout", 2),
            ("layers_per_block", 10**6),
            ("in_channels", 0),
            ("block_out_channels", [8] * 40),
            ("block_out_channels", [2**40, 2**40]),
            ("sample_size", -1),
            ("num_class_embeds", 10**9),
            ("norm_num_groups", 0),
            ("attention_head_dim", 0),
            ("act_fn", "x"),
            ("transformer_layers_per_block", 10**5),
            ("new_key", 1),
            ("layers_per_block", 2),
            ("_class_name", "os.system"),
        ],
        also_same=[("_diffusers_version", "9.9"), ("upcast_attention", False)],
        word="unet",
    )
    yield from json_cases(
        "sample",
        "model/scheduler/scheduler_config.json",
        {
            "num_train_timesteps": "int",
            "beta_start": "float",
            "beta_end": "float",
            "beta_schedule": "str",
            "prediction_type": "str",
            "rescale_betas_zero_snr": "bool",
        },
        [
            ("num_train_timesteps", 1),
            ("num_train_timesteps", -5),
            ("num_train_timesteps", 10**9),
            ("beta_start", 0),
            ("beta_end", 2),
            ("beta_start", 1e-400),
            ("beta_schedule", "steep"),
            ("prediction_type", "future"),
            ("trained_betas", [0.1]),
            ("trained_betas", "x"),
        ],
        also_same=[("clip_sample", True), ("steps_offset", 0), ("variance_type", "x")],
        finite=False,
    )
    yield from json_cases(
        "sample",
        "model/conditioning.json",
        {
            "class_names": "[str]",
            "class_conditional": "bool",
            "dropout": "float",
            "text": "object?",
            "text.encoder": "str",
            "text.max_tokens": "int",
        },
        [
            ("dropout", -0.1),
            ("dropout", 1.5),
            ("text.max_tokens", 0),
            ("text.max_tokens", 10**6),
            ("text.encoder", "other"),
        ],
        also_same=[("null_class", None)],
    )
    yield from json_cases(
        "sample", "model/model_index.json", {"vae": "[str]", "unet": "[str]", "scheduler": "[str]"}, word="model_index"
    )
    yield from json_cases(
        "sample",
        "model/vae/config.json",
        {
            "_class_name": "str",
            "in_channels": "int",
            "latent_channels": "int",
            "block_out_channels": "[int]",
            "layers_per_block": "int",
            "norm_num_groups": "int",
            "scaling_factor": "float",
        },
        [
            ("latent_channels", 0),
            ("latent_channels", 10**9),
            ("block_out_channels", [2**40]),
            ("layers_per_block", 99),
            ("scaling_factor", 0),
            ("scaling_factor", 1e300),
            ("latents_mean", [1]),
            ("_class_name", "Other"),
        ],
        word="vae",
    )
    yield from json_cases(
        "classifier",
        "classifier/classifier/config.json",
        {
            "sample_size": "int",
            "in_channels": "int",
            "num_classes": "int",
            "block_out_channels": "[int]",
            "attention": "[bool]",
            "layers_per_block": "int",
            "dropout": "float",
            "norm_num_groups": "int",
        },
        [("num_classes", 1), ("num_classes", 10**12), ("sample_size", 10**6), ("new_key", 1), ("layers_per_block", 33)],
        word="classifier",
    )
    yield from json_cases(
        "classifier",
        "classifier/classifier/facts.json",
        {"autoencoder": "str", "class_names": "[str]", "schedule": "object", "schedule.num_train_timesteps": "int"},
        [("autoencoder", "x"), ("class_names", []), ("schedule.beta_schedule", "x"), ("schedule.beta_end", 3)],
        word="classifier",
    )
    for part in ("tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json", "text_encoder/config.json"):
        for name in ("cut in the middle", "empty", "zeros", "null", "not UTF-8"):

            def change(folder, part=part, name=name):
                path = folder / "model" / part
                replace_bytes(path, texts_of(path.read_text())[0][name])

            yield Case("sample", f"{part}: {name}", change, "refused", (part.split("/")[0],))
    for part in ("unet", "vae", "text_encoder"):
        for name, cut in (("empty", 0), ("cut in its header", 30), ("cut in its data", -10)):

            def change(folder, part=part, cut=cut):
                path = next((folder / "model" / part).glob("*.safetensors"))
                replace_bytes(path, path.read_bytes()[:cut])

            yield Case("sample", f"{part}: weights {name}", change, "refused", (part,))


def run_cases():
    yield from json_cases(
        "info", "run/run.json", {"kind": "str", "facts": "object", "commands": "[str]"}, word="run.json"
    )
    yield from json_cases("resume", "run/run.json", {"kind": "str", "facts": "object"}, [("kind", "x")], word="run")
    state = {"step": "int", "seconds": "float", "watch": "object?", "scaler": "object?", "watch.left_out": "int"}
    values = [("step", -1), ("step", 4), ("step", 10**15), ("seconds", -1), ("watch.in_a_row", -1)]
    name = "run/checkpoint-60/state.json"
    yield from json_cases("resume", name, state, values, word="state.json", sealed=True)


# lists of images, and the images

ROWS = [{"file_name": f"{n}.png", "text": f"image {n}", "label": "ab"[n % 2]} for n in range(4)]


def rows_with(**changes):
    """metadata.jsonl with the second row changed; a value of ... drops the key."""
    row = {key: value for key, value in {**ROWS[1], **changes}.items() if value is not ...}
    return "".join(json.dumps(row) + "\n" for row in (ROWS[0], row, *ROWS[2:]))


def list_cases():
    whole, second = rows_with(), json.dumps(ROWS[1])
    refused = {
        **{
            f"file_name = {v!r:.30}": rows_with(file_name=v)
            for v in (None, 1, "", [], "../x.png", "/etc/x.png", "no.png")
        },
        **{f"file_name = {v!r:.30}": rows_with(file_name=v) for v in ("a\0b", "x" * 5000, "0.png", ".")},
        "no file_name": rows_with(file_name=...),
        **{f"text = {v!r:.30}": rows_with(text=v) for v in (1, {}, [], [1], True)},
        **{f"label = {v!r:.30}": rows_with(label=v) for v in (1.5, -1, True, [], {}, "", 10**30)},
        "a line cut": whole.replace(second, second[:20]),
        "a list": whole.replace(second, "[1]"),
        "a number": whole.replace(second, "1"),
        "a key twice": whole.replace('"label"', '"text": "x", "label"', 1),
        "NaN": whole.replace('"label"', '"other": NaN, "label"', 1),
        "5,000 digits": whole.replace('"label"', f'"other": {DIGITS}, "label"', 1),
        "40,000 levels": whole.replace('"label"', f'"other": {"[" * 40_000}{"]" * 40_000}, "label"', 1),
        "half a surrogate pair": whole.replace("image 2", "\\ud800"),
        "not UTF-8": whole.encode().replace(b"image 2", b"image \xff"),
        "UTF-16": whole.encode("utf-16"),
        "zeros": b"\0" * 1000,
        "empty": "",
        "a line without an end": whole + '{"file_name": "' + "x" * 3_000_000,
    }
    same = {
        "blank lines": whole.replace("\n", "\n\n \n"),
        "Windows line ends": whole.replace("\n", "\r\n"),
        "a byte order mark": b"\xef\xbb\xbf" + whole.encode(),
        "no last line end": whole.rstrip(),
    }
    for outcome, table in (("refused", refused), ("same", same)):
        for name, text in table.items():
            content = text.encode() if isinstance(text, str) else text
            change = write(("data/metadata.jsonl", content))
            yield Case(
                "list", f"metadata.jsonl: {name}", change, outcome, ("metadata.jsonl",) if outcome == "refused" else ()
            )


def write(*files):
    def change(folder):
        for name, content in files:
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_bytes(content)

    return change


def png(colour=(200, 30, 30), **options):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG", **options)
    return stream.getvalue()


def bomb(width, height):
    """A PNG that says it has this size."""
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    whole = png()
    return whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:]


def jpeg():
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def image_cases():
    whole = png()
    damaged = {
        "empty": b"",
        "text": b"hello",
        "cut": whole[:40],
        "cut in its data": whole[:-20],
        "zeros": b"\0" * 500,
        "a pixel changed": whole[:45] + bytes([whole[45] ^ 1]) + whole[46:],
        "60,000 x 60,000": bomb(60_000, 60_000),
        "2 x 2,000,000,000": bomb(2, 2_000_000_000),
        "0 x 0": bomb(0, 0),
        "half a JPEG": jpeg()[:1500],
        "SVG": b"<svg/>",
    }
    for name, content in damaged.items():
        yield Case("list", f"1.png: {name}", write(("data/1.png", content)), "refused", ("1.png",))
        yield Case("init", f"init image: {name}", write(("image.png", content)), "refused", ("image.png",))
        yield Case("recreate", f"recreate: {name}", write(("image.png", content)), "refused", ("--recreate",))
    for name, make in SPECIAL.items():
        for kind, path, word in (
            ("list", "data/1.png", "1.png"),
            ("init", "image.png", "image"),
            ("recreate", "image.png", "--recreate"),
        ):

            def change(folder, make=make, path=path):
                (folder / path).unlink()
                make(folder / path)

            yield Case(kind, f"{path} is {name}", change, "refused", (word,))
    for key, value in (
        ("request", []),
        ("request", {"prompt": 1}),
        ("request", {"class_label": "x"}),
        ("request", {"x": 1}),
        ("seed", "1"),
        ("seed", None),
        ("seed", 1.5),
        ("index", -(10**30)),
        ("sampling", {"sampler": 3}),
        ("sampling", {"x": 1}),
        ("edit", 3),
        ("sampling", {"guidance": "cfg(3)"}),
        ("sampling", {"guidance_interval": [1]}),
    ):

        def change(folder, key=key, value=value):
            with Image.open(folder / "image.png") as image:
                text = json.loads(image.text["ldm"]) | {key: value}
            info = PngImagePlugin.PngInfo()
            info.add_text("ldm", json.dumps(text))
            replace_bytes(folder / "image.png", png(pnginfo=info))

        yield Case("recreate", f"recreate: {key} = {value!r}", change, "refused", ("--recreate",))


SPECIAL = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "absent": lambda path: None,
}


def special_cases():
    """Files that are none, in the place of every file that is read."""
    places = [
        ("sample", "model/unet/config.json", "unet"),
        ("sample", "model/model_index.json", "model"),
        ("sample", "model/scheduler/scheduler_config.json", "scheduler"),
        ("sample", "model/vae/config.json", "vae"),
        ("sample", "model/unet/diffusion_pytorch_model.safetensors", "unet"),
        ("sample", "model/conditioning.json", "conditioning.json"),
        ("info", "run/run.json", "run"),
        ("settings", "settings.yaml", "settings.yaml"),
        ("list", "data/metadata.jsonl", "metadata.jsonl"),
    ]
    for (kind, path, word), (name, make) in itertools.product(places, SPECIAL.items()):
        if (kind, name) in (("list", "absent"), ("list", "a folder"), ("info", "absent")):
            continue  # then it is another data set, or a model that is no run

        def change(folder, path=path, make=make):
            (folder / path).unlink()
            make(folder / path)

        yield Case(kind, f"{path} is {name}", change, "refused", (word,))


def tar_bytes(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


MEMBERS = [
    (f"{n}.{e}", c)
    for n in range(4)
    for e, c in (("png", png((n, 9, 9))), ("txt", f"image {n}".encode()), ("cls", b"1"))
]


def tar_cases():
    whole = tar_bytes(MEMBERS)
    damaged = {
        **{f"cut after {size} bytes": whole[:size] for size in (0, 100, 511, 512, 700, 5000)},
        **{f"zeros at {at}": whole[:at] + b"\0" * 512 + whole[at + 512 :] for at in (512, 1024)},
        "a header changed": whole[:1030] + b"\xff" + whole[1031:],
        "text": b"hello" * 1000,
        **{
            f"{name} is {content[:20]!r}": tar_bytes([(n, content if n == name else c) for n, c in MEMBERS])
            for name, content in (
                ("1.png", b"hello"),
                ("1.png", b""),
                ("1.txt", b"\xff\xfe"),
                ("1.cls", b"-1"),
                ("1.cls", b""),
                ("1.cls", b"9" * 5000),
                ("1.png", bomb(60_000, 60_000)),
            )
        },
        **{
            f"1.json is {content[:20]!r}": tar_bytes(
                [("1.json", content) if n == "1.txt" else (n, c) for n, c in MEMBERS if not n.endswith(".cls")]
            )
            for content in (
                b"{",
                b'{"text": 1}',
                b'{"label": 1.5, "text": "x"}',
                b'{"text": "x", "text": "y"}',
                DIGITS.encode(),
            )
        },
    }
    for name, content in damaged.items():
        words = ("1.png",) if name.startswith("1.png") else ("0.png",) if name == "zeros at 512" else ("a.tar",)
        yield Case("tar", f"tar: {name}", write(("data/a.tar", content)), "refused", words)
    yield Case("tar", "tar: more zeros at its end", write(("data/a.tar", whole + b"\0" * 10240)), "same")


def parquet_bytes(rows, **columns):
    import pyarrow
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows) if rows else pyarrow.table(columns), stream)
    return stream.getvalue()


PARQUET = [{"image": {"bytes": png((n, 9, 9)), "path": None}, "text": f"image {n}", "label": n % 2} for n in range(4)]


def parquet_cases():
    whole = parquet_bytes(PARQUET)
    damaged = {
        **{f"cut after {size} bytes": whole[:size] for size in (0, 3, 4, 8, 100, len(whole) - 5)},
        "text": b"hello" * 1000,
        "a footer of 2 GB": whole[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
        "zeros in its footer": whole[:-60] + b"\0" * 50 + whole[-10:],
        **{
            f"{key} = {value!r:.20}": parquet_bytes([{**row, key: value} for row in PARQUET])
            for key, value in (
                ("image", 3),
                ("image", "x"),
                ("image", None),
                ("image", {"bytes": None, "path": "x.png"}),
                ("image", b"hello"),
                ("text", 3),
                ("text", [1]),
                ("label", 1.5),
                ("label", -1),
                ("label", [1]),
                ("image", bomb(60_000, 60_000)),
            )
        },
        "without rows": parquet_bytes([], image=[]),
    }
    for name, content in damaged.items():
        words = ("a/00000000",) if name.startswith("image = b") else ("a.parquet",)
        yield Case("parquet", f"parquet: {name}", write(("data/a.parquet", content)), "refused", words)


# YAML and flags

YAML = "dataset: {data: shapes, image_size: 16}\ntraining:\n  seed: 3\n  learning_rate: 0.001\n"
WRONG_YAML = {
    int: [
        "x",
        "1.5",
        "[1]",
        "{a: 1}",
        "true",
        DIGITS,
        ".nan",
        "null",
        "9999999999999999999999",
        "!!python/object:os.system x",
    ],
    float: ["x", "[1]", "{a: 1}", "true", ".nan", ".inf", "-.inf", "1e999", DIGITS, "null"],
    bool: ["x", "2", "[true]", "{a: 1}", "0.5", "null"],
    str: ["[x]", "{a: 1}"],
    tuple: ["{a: 1}", "3", "[[1]]", "x"],
}


def leaves(schema, prefix=""):
    """(dotted key, type) of every setting."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hint


def yaml_cases():
    from ldm.training.tasks.settings import DiffusionRun

    refused = {
        "a list": "- 1\n",
        "a number": "3\n",
        "a string": "hello\n",
        "a tab": YAML.replace("  seed", "\tseed"),
        "not UTF-8": YAML.encode() + b"# \xff\n",
        "a key twice": YAML + "  seed: 4\n",
        "an alias": "a: &x [1]\nb: *x\n",
        "an anchor of itself": "a: &x [*x]\n",
        "an interpolation": YAML + "  output_dir: ${oc.env:HOME}\n",
        "Python": "!!python/object/apply:os.system ['true']\n",
        "an unknown key": YAML + "  sed: 4\n",
        "NUL": "a: \0\n",
        "40,000 levels": "a: " + "[" * 40_000 + "]" * 40_000,
        "4,000 levels": "a: " + "{a: " * 4_000 + "1" + "}" * 4_000,
        "90,000 keys": "".join(f"k{n}: {n}\n" for n in range(90_000)),
        "3 MB": "# " + "x" * 3_000_000,
        "9,000 keys": "".join(f"k{n}: {n}\n" for n in range(9_000)),
        "two documents": YAML + "---\n" + YAML,
        "not closed": YAML + "dataset: {a: [1\n",
        "a key that is a list": "? [1]\n: 2\n",
        "a date": YAML + "  seed: 2001-01-01\n",
    }
    for name, text in refused.items():
        content = text if isinstance(text, bytes) else text.encode()
        yield Case("settings", f"YAML: {name}", write(("settings.yaml", content)), "refused", ("settings.yaml",))
    for name, text in (("a comment", YAML + "# é\n"), ("a document mark", "---\n" + YAML), ("blanks", "\n\n" + YAML)):
        yield Case("settings", f"YAML: {name}", write(("settings.yaml", text.encode())), "same")
    for key, hint in leaves(DiffusionRun):
        kinds = [kind for kind in WRONG_YAML if kind is hint or (kind is tuple and str(hint).startswith("tuple"))]
        for text in WRONG_YAML[kinds[0]] if kinds else ():
            *parents, last = key.split(".")
            nested = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(parents))
            content = f"{nested}{'  ' * len(parents)}{last}: {text}\n".encode()
            yield Case(
                "settings", f"YAML: {key}: {text:.30}", write(("settings.yaml", content)), "refused", ("settings.yaml",)
            )


NEGATIVE = {"seed", "shapes_seed", "time_mean"}
UNBOUNDED_AT_0 = {"--eval-every"}


def flag_cases():
    from ldm.training.tasks.settings import AutoencoderRun, ClassifierRun, DiffusionRun, GanRun, PriorRun

    kinds = {"autoencoder": AutoencoderRun, "diffusion": DiffusionRun, "classifier": ClassifierRun, "gan": GanRun}
    for kind, schema in (kinds | {"prior": PriorRun}).items():
        for key, hint in leaves(schema):
            name = key.split(".")[-1]
            if not {int, float} & {hint, *getattr(hint, "__args__", ())}:
                continue
            for value in ("nan", "inf", "-1e300", "1e300", "-99999999999999999999999", "99999999999999999999999", "x"):

                def change(folder, kind=kind, name=name, value=value):
                    return ["settings", kind, f"--{name.replace('_', '-')}", value]

                yield Case("settings", f"{kind} --{name} {value}", change, "refused", (name.replace("_", "-"),))


# prompts and paths


def flags(*values):
    return lambda folder: [*SAMPLE, *values]


def text_cases():
    accepted = {
        "blanks": " \t ",
        "control characters": "a\x07\x1b[31mred\x7f",
        "right to left": "a \u202e red",
        "emoji": "\U0001f600" * 50,
        "combining": "a" + "\u0301" * 500,
        "50,000 words": "red " * 50_000,
        "a long word": "x" * 100_000,
        "quotes": "'\";$(ls)",
        "a tag": "<|endoftext|><script>",
        "braces": "{0} %s",
        "a dash": "- a",
    }
    for name, text in accepted.items():
        yield Case("prompt", f"prompt: {name}", flags("--prompt", text), "accepted")
        yield Case(
            "prompt",
            f"negative prompt: {name}",
            flags(*PROMPT, "--guidance-scale", "2", "--negative-prompt", text),
            "accepted",
        )
    half = "a \udcff red"
    for flag in ("--prompt", "--negative-prompt"):
        yield Case(
            "prompt", f"{flag} not UTF-8", flags(*PROMPT, "--guidance-scale", "2", flag, half), "refused", (flag,)
        )
    for name, path, outcome in (
        ("a new folder below new ones", "a/b/c", "accepted"),
        ("blanks", "my images", "accepted"),
        ("a line end", "a\nb", "accepted"),
        ("not UTF-8", "a\udcff", "refused"),
        ("too long", "x" * 300, "refused"),
        ("too deep", "x/" * 3000, "refused"),
        ("below a file", "file.txt/out", "refused"),
        ("a file", "file.txt", "refused"),
        ("a loop", "loop/out", "refused"),
        ("empty", "", "refused"),
        ("a pipe", "pipe", "refused"),
        ("the model", "model", "refused"),
        ("a device", "/dev/null/x", "refused"),
        ("nothing that may be written", "/proc/x", "refused"),
    ):

        def change(folder, path=path):
            (folder / "file.txt").write_text("x")
            (folder / "loop").symlink_to("loop")
            os.mkfifo(folder / "pipe")
            return [*SAMPLE[:-1], path, *PROMPT]

        yield Case("prompt", f"output-dir: {name}", change, outcome)
    for name, path in (
        ("not UTF-8", "a\udcff"),
        ("too long", "x" * 300),
        ("below a file", "file.txt/x"),
        ("a pipe", "pipe"),
        ("a loop", "loop"),
        ("a file", "file.txt"),
        ("absent", "no/such"),
        ("empty", ""),
    ):
        for where, arguments in (
            ("model", lambda path: ["sample", path, *SAMPLE[2:], *PROMPT]),
            ("config", lambda path: ["settings", "diffusion", "--config", path]),
            ("data", lambda path: ["read", path]),
            ("info", lambda path: ["info", path]),
            ("report", lambda path: ["report", path]),
            ("recreate", lambda path: [*SAMPLE, "--recreate", path]),
            ("init-image", lambda path: [*SAMPLE, *PROMPT, "--init-image", path]),
            ("classifier", lambda path: [*SAMPLE, *PROMPT, "--classifier", path, "--classifier-scale", "1"]),
            ("weak", lambda path: [*SAMPLE, *PROMPT, "--weak", path, "--guidance", "autoguidance(2)"]),
        ):
            if name == "empty" and where in ("recreate", "init-image", "classifier", "weak"):
                continue  # unset

            def change(folder, path=path, arguments=arguments):
                (folder / "file.txt").write_text("x")
                (folder / "loop").symlink_to("loop")
                os.mkfifo(folder / "pipe")
                return arguments(path)

            yield Case("prompt", f"{where}: {name}", change, "refused")


def scale_cases():
    for flag, values in {
        "--guidance-scale": ["1e308", "nan", "inf", "-1", "x", "1e7"],
        "--classifier-scale": ["1e308", "-1", "nan"],
        "--num-images": ["0", "-1", "99999999999", "1.5", "x"],
        "--batch-size": ["0", "-3", "99999999999"],
        "--num-inference-steps": ["0", "-1", "1001", "99999999999"],
        "--seed": ["x", "1.5", "1" * 50],
        "--first-index": ["-1", "1" * 50],
        "--guidance": ["cfg(1e308)", "cfg(", "cfg(nan)", "__import__('os')", "cfg(" * 500, "pag(-1)", "x" * 100_000],
        "--sampler": ["ddim(eta=1e308)", "ddim(eta=nan)", "no", "ddim(" + "[" * 5000, "heun(s_churn=1e400)"],
        "--spacing": ["x"],
        "--device": ["gpu9", "cuda:999", ""],
        "--class-label": ["no", "999", "-1", "9" * 5000],
        "--tile": ["0", "-1", "99999999999"],
        "--feature-cache": ["0", "-1", "99999999999"],
    }.items():
        for value in values:
            yield Case("prompt", f"{flag} {value:.30}", flags(*PROMPT, f"{flag}={value}"), "refused")


KINDS = {
    "model": model_cases,
    "run": run_cases,
    "list": list_cases,
    "image": image_cases,
    "special": special_cases,
    "tar": tar_cases,
    "parquet": parquet_cases,
    "yaml": yaml_cases,
    "flag": flag_cases,
    "text": text_cases,
    "scale": scale_cases,
}


class Fuzz:
    """The worker, the folders that cases start from, and what comes of them without a change."""

    def __init__(self, models, root):
        self.root, self.count = root, itertools.count()
        self.bases = {}
        model = shutil.copytree(
            models.text, root / "text", ignore=shutil.ignore_patterns("samples", "logs", "model_manifest.json")
        )
        for name in ("prompt", "sample", "init", "recreate", "classifier"):
            shutil.copytree(
                model, root / name / "model", ignore=shutil.ignore_patterns("checkpoint-*"), copy_function=os.link
            )
        shutil.copytree(
            models.classifier, root / "classifier" / "classifier", ignore=shutil.ignore_patterns("checkpoint-*", "vae")
        )
        for name in ("info", "resume"):
            shutil.copytree(model, root / name / "run", copy_function=os.link)
        for name in ("list", "tar", "parquet"):
            (root / name / "data").mkdir(parents=True)
        (root / "init" / "image.png").write_bytes(png())
        (root / "list" / "data" / "metadata.jsonl").write_text(rows_with())
        for number in range(4):
            (root / "list" / "data" / f"{number}.png").write_bytes(png((number, 9, 9)))
        (root / "tar" / "data" / "a.tar").write_bytes(tar_bytes(MEMBERS))
        (root / "parquet" / "data" / "a.parquet").write_bytes(parquet_bytes(PARQUET))
        (root / "settings").mkdir()
        (root / "settings" / "settings.yaml").write_text(YAML)
        resume = [*models.command("diffusion", "run", steps=60)]
        label = ["--classifier-scale", "1", "--class-label", "0", "--classifier", "classifier"]
        self.arguments = {
            "sample": [*SAMPLE, *PROMPT],
            "prompt": [*SAMPLE, *PROMPT],
            "classifier": [*SAMPLE, *PROMPT, *label],
            "init": [*SAMPLE, *PROMPT, "--init-image", "image.png", "--strength", "0.5"],
            "recreate": [*SAMPLE[:4], "--recreate", "image.png", "--output-dir", "out"],
            "info": ["info", "run"],
            "resume": resume,
            "list": ["read", "data"],
            "tar": ["read", "data"],
            "parquet": ["read", "data"],
            "settings": ["settings", "diffusion", "--config", "settings.yaml"],
        }
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(sys.path)}
        warm = {
            kind: shutil.copytree(root / kind, root / "warm" / kind)
            for kind in ("classifier", "init", "tar", "parquet")
        }
        warm_up = [(str(folder), self.arguments[kind]) for kind, folder in warm.items()]
        command = [sys.executable, str(WORKER), json.dumps(warm_up)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.worker = subprocess.Popen(command, **pipes, env=environment, cwd=root)
        self.unchanged = {}
        folder, result = self.start("sample")
        assert result["code"] == 0, result["err"]
        shutil.copy(folder / "out" / "000000.png", root / "recreate" / "image.png")

    def start(self, kind, change=None):
        """A case in a folder of its own: the folder and the result."""
        folder = self.root / "cases" / str(next(self.count))
        shutil.copytree(self.root / kind, folder, symlinks=True, copy_function=os.link)
        arguments = (change(folder) if change is not None else None) or self.arguments[kind]
        before = tree(folder)
        text = json.dumps({"arguments": arguments, "folder": str(folder)})
        self.worker.stdin.write(text + "\n")
        self.worker.stdin.flush()
        result = json.loads(self.worker.stdout.readline())
        result["out"] = result["out"].replace(str(folder), "")
        result["before"], result["after"] = before, tree(folder)
        return folder, result

    def problem(self, case):
        """What is wrong with the outcome of a case, None for nothing."""
        if case.kind not in self.unchanged:
            _, self.unchanged[case.kind] = self.start(case.kind)
            assert self.unchanged[case.kind]["code"] == 0, self.unchanged[case.kind]["err"]
        folder, result = self.start(case.kind, case.change)
        shutil.rmtree(folder)
        code, err = result["code"], result["err"]
        if "Traceback" in err or code == 1:
            return f"traceback: {err.strip()[-300:]}"
        if code < 0:
            return f"signal {-code}"
        if result["seconds"] > SECONDS or result["peak"] > BYTES:
            return f"{result['seconds']:.1f} s, {result['peak'] / 2**20:.0f} MiB"
        if left := [name for name in result["after"] if ".tmp-" in name or ".old-" in name]:
            return f"left over: {left[0]}"
        if case.outcome != "refused":
            if code != 0:
                return f"refused, expected {case.outcome}: {err.strip()[:300]}"
            own = self.unchanged[case.kind]
            new = {k: v for k, v in result["after"].items() if k not in result["before"]}
            others = {k: v for k, v in own["after"].items() if k not in own["before"]}
            if case.outcome == "same" and (result["out"] != own["out"] or new != others):
                return f"another result: {result['out'][:200]}"
            return None
        if code == 0:
            return f"accepted: {result['out'][-200:]}{err[-200:]}"
        lines = err.strip().split("\n")
        if len(lines) != 1 or not lines[0].startswith("ldm: ") or not lines[0].isprintable():
            return f"not one line: {err[:300]}"
        if len(lines[0]) > 2000:
            return f"a line of {len(lines[0])} characters: {err[:100]}"
        if missing := [word for word in case.words if word not in err]:
            return f"does not name {missing[0]}: {err[:300]}"
        if result["after"] != result["before"]:
            changed = set(result["after"].items()) ^ set(result["before"].items())
            return f"files changed: {sorted(name for name, _ in changed)[:4]}"
        return None


def tree(folder):
    """Names, and size and time of change where they are regular files."""
    status = {}
    for path, _, names in os.walk(folder):
        for name in (".", *names):
            full = os.path.join(path, name)
            entry = os.lstat(full)
            status[os.path.relpath(full, folder)] = entry.st_size if os.path.isfile(full) else None
    return status


@pytest.fixture(scope="module")
def fuzz(models, tmp_path_factory):
    fuzz = Fuzz(models, tmp_path_factory.mktemp("fuzz"))
    yield fuzz
    fuzz.worker.stdin.close()
    fuzz.worker.wait(20)


def report(problems):
    return "\n".join(f"{case.kind}: {case.name}\n    {problem}" for case, problem in problems)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_choice_of_each_kind(fuzz, kind):
    cases = list(KINDS[kind]())
    chosen = random.Random(f"{kind} 12").sample(cases, min(len(cases), 12))
    problems = [(case, problem) for case in chosen if (problem := fuzz.problem(case))]
    assert not problems, report(problems)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_cases(fuzz, kind):
    problems = [(case, problem) for case in KINDS[kind]() if (problem := fuzz.problem(case))]
    assert not problems, report(problems)
