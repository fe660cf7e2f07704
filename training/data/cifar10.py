"""CIFAR-10: 8-bit colour images, [3, 32, 32], from the official binary version.

    record = 1 byte of class, then 1024 bytes each of red, green and blue, row by row

The first 45,000 images of the five training files are `train`, the last 5,000 are `valid`, and the
10,000 of the test file are `test`. Source: Krizhevsky 2009, "Learning multiple layers of features
from tiny images".
"""

import hashlib
import tarfile
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from training.data.dataset import DataError, Dataset, DataSetConfig, eight_bit
from training.data.files import RemoteFile, data_folder, fetch, read

ARCHIVE = RemoteFile(
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    ("https://www.cs.toronto.edu/~kriz",),
)
TRAIN = (
    RemoteFile("data_batch_1.bin", "5dd7e06a14cb22eb9f671a540d1b7c25", ()),
    RemoteFile("data_batch_2.bin", "5ea93a67294ea407fff1d09f752e9692", ()),
    RemoteFile("data_batch_3.bin", "942cd6a4bcdd0dd3c604fbe906cb4421", ()),
    RemoteFile("data_batch_4.bin", "ae636b3ba5c66a11e91e8cb52e771fcb", ()),
    RemoteFile("data_batch_5.bin", "53f37980c15c3d472c316c40844f3f0d", ()),
)
TEST = RemoteFile("test_batch.bin", "803d5f7f4d78ea53de84dbe85f74fb6d", ())

SHAPE = (3, 32, 32)
ROW = 1 + 3 * 32 * 32


class Cifar10Config(DataSetConfig):
    """CIFAR-10, with the last `valid` images of the training files held out."""

    kind: Literal["cifar10"] = "cifar10"
    valid: int = Field(default=5_000, gt=0, lt=50_000)

    @override
    def load(self) -> Dataset:
        """Read the images, uint8 [rows, 3, 32, 32], downloading them if necessary."""
        images, test = torch.cat([read_rows(file) for file in TRAIN]), read_rows(TEST)
        cut = len(images) - self.valid
        digest = hashlib.sha256(" ".join(file.md5 for file in (*TRAIN, TEST)).encode())
        return Dataset(
            name=self.kind,
            space=eight_bit(SHAPE),
            train=images[:cut],
            valid=images[cut:],
            test=test,
            checksum=f"sha256:{digest.hexdigest()}",
        )


def content(file: RemoteFile) -> bytes:
    """Read one of the six files from NONEQ_DATA/cifar10 or from the archive.

    Raises:
        DataError: neither exists, or its bytes are wrong.
    """
    folder = data_folder("cifar10")
    if folder is not None and any(folder.glob(f"{file.name}*")):
        return read("cifar10", file)
    path = fetch("cifar10", ARCHIVE)
    with tarfile.open(path) as archive:
        member = archive.extractfile(f"cifar-10-batches-bin/{file.name}")
        if member is None:
            raise DataError(f"{path} holds no file {file.name}")
        return member.read()


def read_rows(file: RemoteFile) -> Tensor:
    """Read the images of one file, without their classes, uint8 [rows, 3, 32, 32].

    Raises:
        DataError: as `content`, or the file ends within a record.
    """
    rows = torch.frombuffer(bytearray(content(file)), dtype=torch.uint8)
    if not len(rows) or len(rows) % ROW:
        raise DataError(f"{file.name} holds {len(rows)} bytes, expected a multiple of {ROW}")
    return rows.view(-1, ROW)[:, 1:].reshape(-1, *SHAPE)
