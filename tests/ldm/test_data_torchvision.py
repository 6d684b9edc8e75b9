"""torchvision's sets by name, from files made here: nothing is downloaded."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from ldm.data.config import DataConfig
from ldm.data.dataset import ImageData
from ldm.data.open import open_data
from ldm.runtime.errors import UserError

GENERATOR = np.random.Generator(np.random.PCG64(1))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refused)


def write_mnist(root: Path, name: str, train: int, test: int) -> dict[str, np.ndarray]:
    images = {}
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        images[prefix] = GENERATOR.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x0803, count, 28, 28) + images[prefix].tobytes()
        )
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, count) + labels.tobytes())
    return images


@pytest.mark.parametrize(
    ("name", "folder", "seventh"), [("mnist", "MNIST", "7"), ("fashion_mnist", "FashionMNIST", "Sneaker")]
)
def test_mnist_and_fashion_mnist(tmp_path: Path, name: str, folder: str, seventh: str) -> None:
    images = write_mnist(tmp_path, folder, 12, 5)
    config = DataConfig(data=name, data_root=str(tmp_path), image_size=28)
    train, validation = open_data(config), open_data(config, "validation")
    assert isinstance(train, ImageData) and (len(train), len(validation)) == (12, 5)
    assert len(train.class_names) == 10 and train.class_names[7] == seventh and train.label(11) == 1
    expected = torch.from_numpy(images["t10k"][3]).float() / 127.5 - 1
    assert all(torch.allclose(channel, expected, atol=1e-6) for channel in validation[3].image)
    assert train.fingerprint != validation.fingerprint and train.fingerprint == open_data(config).fingerprint
    larger = open_data(DataConfig(data=name, data_root=str(tmp_path), image_size=32))
    assert larger[0].image.shape == (3, 32, 32) and larger.image_fingerprint == train.image_fingerprint


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)  # real files have known MD5 sums
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    rows = {name: GENERATOR.integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8) for name in names}
    for name, row in rows.items():
        (folder / name).write_bytes(pickle.dumps({"data": row, "labels": [0, 3, 9, 1]}))
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    config = DataConfig(data="cifar10", data_root=str(tmp_path), flip=True)
    train, validation = open_data(config), open_data(config, "validation")
    assert (len(train), len(validation)) == (20, 4) and train.class_names == tuple(classes) and train.label(2) == 9
    expected = torch.from_numpy(rows["data_batch_2"][1].reshape(3, 32, 32)).float() / 127.5 - 1
    assert torch.allclose(train[5].image, expected, atol=1e-6)
    seen = {torch.equal(train[5, seed].image, train[5].image) for seed in range(20)}
    assert seen == {True, False}
    assert all(
        torch.equal(view, train[5].image) or torch.equal(view.flip(-1), train[5].image)
        for view in (train[5, seed].image for seed in range(20))
    )


@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashion_mnist"])
def test_absent_sets_are_not_fetched(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        UserError, match=f"`data` {name}: not found.* in .*; name its folder by `data_root`, or give `download`"
    ):
        open_data(DataConfig(data=name, data_root=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_a_failed_download_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`data` mnist: download failed in ") as caught:
        open_data(DataConfig(data="mnist", data_root=str(tmp_path), download=True))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST", 12, 5)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="`data` mnist"):
        open_data(DataConfig(data="mnist", data_root=str(tmp_path)))
    path.write_bytes(gzip.compress(b"other"))
    with pytest.raises(UserError, match="`data` mnist"):
        open_data(DataConfig(data="mnist", data_root=str(tmp_path)))
