"""Publishing is one transaction: killed after any operation, the parts of a model folder are of one step."""

import functools
import itertools
import json
import os

import pytest

from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write, atomic_write_json
from ldm.sampling.model_manifest import MANIFEST, differences, read_manifest
from ldm.sampling.publication import PENDING, complete, publication, reading, replaced_parts

PARTS = ("unet/config.json", "unet/weights", "text_encoder/weights", "conditioning.json")
OPERATIONS = ("rename", "replace", "unlink", "rmdir", "mkdir")


def publish(root, step):
    with publication(root, step=step, autoencoder="abc") as folder:
        for name in PARTS:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps({"step": step, "class_names": []}))


def step_of(root):
    """The step of all parts and of the manifest, which lists them as they are."""
    manifest = read_manifest(root)
    assert differences(root, manifest) == [] and manifest.files.keys() == set(PARTS)
    (step,) = {manifest.step, *(json.loads((root / name).read_text())["step"] for name in PARTS)}
    return step


def killed_before(number, work):
    """Do `work` in a process that ends, without a word, before the `number`-th of its operations; whether it ended."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    calls = 0

    def counted(real):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                os._exit(9)
            return real(*arguments, **options)

        return call

    try:
        for name in OPERATIONS:
            setattr(os, name, counted(getattr(os, name)))
        work()
    finally:
        os._exit(0)


def test_killed_before_any_operation_the_folder_is_of_one_step(tmp_path):
    outcomes, step = set(), 1
    publish(tmp_path, step)
    (tmp_path / "unet" / "notes.txt").write_text("mine")
    for number in itertools.count(1):
        ended = killed_before(number, functools.partial(publish, tmp_path, step + 1))
        with reading(tmp_path):
            now = step_of(tmp_path)
        outcomes.add((now - step, ended))
        step = now
        assert not (tmp_path / PENDING).exists() and (tmp_path / "unet" / "notes.txt").read_text() == "mine"
        if not ended:
            break
    assert outcomes == {(0, True), (1, True), (1, False)}, "killed before the commit and after it"
    publish(tmp_path, step + 1)
    names = {name.split("/")[0] for name in PARTS} | {MANIFEST}
    assert {path.name for path in tmp_path.iterdir()} == names, "nothing is left over"


def test_killed_again_and_again_while_it_is_completed(tmp_path):
    publish(tmp_path, 1)
    for number in itertools.count(1):
        killed_before(number, functools.partial(publish, tmp_path, 2))
        if (tmp_path / PENDING).exists():
            break
    kills = 0
    while killed_before(2, functools.partial(complete, tmp_path)):
        kills += 1
    assert kills >= 4 and step_of(tmp_path) == 2


def test_a_publication_that_fails_leaves_the_folder_as_it_was(tmp_path):
    publish(tmp_path, 1)
    with pytest.raises(ZeroDivisionError), publication(tmp_path, step=2) as folder:
        (folder / "unet").mkdir()
        raise ZeroDivisionError
    assert step_of(tmp_path) == 1 and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_replaced_parts_keep_the_manifest_right(tmp_path):
    publish(tmp_path, 3)
    with replaced_parts(tmp_path) as parts:
        atomic_write_json(parts / "conditioning.json", {"class_names": ["a", "b"], "step": 3})
        atomic_write(parts / "classifier" / "weights", "new")
    manifest = read_manifest(tmp_path)
    assert differences(tmp_path, manifest) == [] and manifest.files.keys() == {*PARTS, "classifier/weights"}
    assert (manifest.step, manifest.autoencoder, manifest.class_names) == (3, "abc", ("a", "b"))
    publish(tmp_path, 4)
    assert read_manifest(tmp_path).files.keys() == {*PARTS, "classifier/weights"}, "a part that the run does not write"


def test_a_folder_without_a_manifest_stays_without(tmp_path):
    with replaced_parts(tmp_path) as parts:
        atomic_write(parts / "unet" / "weights", "x")
    assert read_manifest(tmp_path) is None and (tmp_path / "unet" / "weights").exists()


ENTRY = {"bytes": 1, "sha256": "0"}
WHOLE = {"format": 1, "step": 1, "autoencoder": "", "class_names": None, "files": {"x": ENTRY}}


@pytest.mark.parametrize(
    "content",
    [
        [],
        WHOLE | {"format": 2},
        WHOLE | {"step": "1"},
        WHOLE | {"autoencoder": None},
        WHOLE | {"class_names": 3},
        WHOLE | {"files": [ENTRY]},
        WHOLE | {"files": {"../x": ENTRY}},
        WHOLE | {"files": {"/x": ENTRY}},
        WHOLE | {"files": {"x": {"bytes": "1", "sha256": "0"}}},
    ],
    ids=str,
)
def test_what_is_no_manifest_is_named(tmp_path, content):
    (tmp_path / MANIFEST).write_text(json.dumps(WHOLE))
    assert read_manifest(tmp_path).files == {"x": ENTRY}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"model_manifest\.json: (not the manifest of a model|expected an object)"):
        read_manifest(tmp_path)
