"""CIFAR-10 and binarised MNIST: read from a folder, compressed or not, or from the archive."""

import gzip
import hashlib
import io
import lzma
import tarfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.space import DataSpace
from training.data import BinarizedMnistConfig, Cifar10Config, binarized_mnist, cifar10, files, load
from training.data.dataset import DataError
from training.data.files import RemoteFile
from training.sheet import GAP, sheet


def published(name: str, content: bytes) -> RemoteFile:
    """A file whose published md5 is that of `content`."""
    return RemoteFile(name, hashlib.md5(content, usedforsecurity=False).hexdigest(), ())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder."""
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    return tmp_path


def colours(rows: int) -> tuple[bytes, Tensor]:
    """A file of CIFAR-10 and the images in it."""
    content = torch.randint(0, 256, (rows, cifar10.ROW), dtype=torch.uint8)
    return content.numpy().tobytes(), content[:, 1:].reshape(-1, 3, 32, 32)


@pytest.fixture
def photographs(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[bytes, Tensor]]:
    """Six small files in CIFAR-10's place, by name: their bytes and their images."""
    made = {f"data_batch_{i}.bin": colours(4) for i in range(1, 6)} | {"test_batch.bin": colours(3)}
    found = {name: published(name, content) for name, (content, _) in made.items()}
    monkeypatch.setattr(cifar10, "TEST", found.pop("test_batch.bin"))
    monkeypatch.setattr(cifar10, "TRAIN", tuple(found.values()))
    return made


def check(photographs: dict[str, tuple[bytes, Tensor]]) -> None:
    """What is loaded is what was written, in order."""
    dataset = load(Cifar10Config(valid=6))
    images = torch.cat([photographs[f"data_batch_{i}.bin"][1] for i in range(1, 6)])
    assert torch.equal(torch.cat([dataset.train, dataset.valid]), images)
    assert len(dataset.valid) == 6
    assert torch.equal(dataset.test, photographs["test_batch.bin"][1])
    dataset.space.check(dataset.test.float())


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_cifar_is_read_from_its_files(
    folder: Path, photographs: dict[str, tuple[bytes, Tensor]], suffix: str
) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    (folder / "cifar10").mkdir()
    for name, (content, _) in photographs.items():
        (folder / "cifar10" / (name + suffix)).write_bytes(pack(content))
    check(photographs)


def test_cifar_is_read_from_its_archive(
    folder: Path,
    photographs: dict[str, tuple[bytes, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, (content, _) in photographs.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    (folder / "cifar10").mkdir()
    (folder / "cifar10" / cifar10.ARCHIVE.name).write_bytes(out.getvalue())
    monkeypatch.setattr(cifar10, "ARCHIVE", published(cifar10.ARCHIVE.name, out.getvalue()))
    check(photographs)


def test_a_compressed_file_is_checked_unpacked(
    folder: Path, photographs: dict[str, tuple[bytes, Tensor]]
) -> None:
    (folder / "cifar10").mkdir()
    path = folder / "cifar10" / "data_batch_1.bin.xz"
    path.write_bytes(lzma.compress(photographs["data_batch_2.bin"][0]))
    with pytest.raises(DataError, match=r"data_batch_1\.bin\.xz is corrupt: uncompressed"):
        load(Cifar10Config())
    path.write_bytes(b"no xz")
    with pytest.raises(DataError, match=r"no whole \.xz file"):
        load(Cifar10Config())


def amat(bits: Tensor) -> bytes:
    """The text of a binarised file."""
    return b"".join(" ".join(str(int(b)) for b in row).encode() + b"\n" for row in bits.flatten(1))


def test_binarised_digits_are_read_as_they_were_split(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "binarized_mnist").mkdir()
    wanted = {}
    for name, rows in (("TRAIN", 5), ("VALID", 3), ("TEST", 2)):
        bits = torch.randint(0, 2, (rows, 1, 28, 28)).float()
        file = published(getattr(binarized_mnist, name).name, amat(bits))
        (folder / "binarized_mnist" / file.name).write_bytes(amat(bits))
        monkeypatch.setattr(binarized_mnist, name, file)
        wanted[name] = bits
    dataset = load(BinarizedMnistConfig())
    assert torch.equal(dataset.train, wanted["TRAIN"])
    assert torch.equal(dataset.valid, wanted["VALID"])
    assert torch.equal(dataset.test, wanted["TEST"])
    dataset.space.check(dataset.train)


@pytest.mark.parametrize("text", [b"", b"0 1 0\n", b"2 " * 783 + b"0\n"])
def test_text_that_is_no_digits_is_refused(text: bytes) -> None:
    with pytest.raises(DataError, match=r"expected a multiple|other characters"):
        binarized_mnist.read_amat(text, "file")


def test_bits_of_an_image_are_drawn_as_one() -> None:
    bits = torch.zeros(1, 1, 28, 28)
    bits[0, 0, 3, 5] = 1
    picture = sheet(DataSpace(kind="bits", shape=(1, 28, 28)), bits)
    tile = picture[GAP:-GAP, GAP:-GAP]
    assert tile.shape == (28, 28, 3)
    assert (tile[3, 5] == 255).all()
    assert tile.sum() == 3 * 255
