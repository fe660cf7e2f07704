"""MNIST: 8-bit digits, [1, 28, 28], from the four official idx files.

    magic = 0, 0, 8 (unsigned byte), axes;   then one big-endian uint32 per axis;   then the bytes

The first 55,000 images of the training file are `train`, the last 5,000 are `valid`, and the 10,000
images of the test file are `test`. Source: LeCun, Cortes and Burges, "The MNIST database".
"""

import gzip
import hashlib
import struct
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from training.data.dataset import DataError, Dataset, DataSetConfig, eight_bit
from training.data.files import RemoteFile, fetch

HOSTS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
TRAIN_IMAGES = RemoteFile("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", HOSTS)
TRAIN_LABELS = RemoteFile("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", HOSTS)
TEST_IMAGES = RemoteFile("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", HOSTS)
TEST_LABELS = RemoteFile("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", HOSTS)

SIDE = 28


class MnistConfig(DataSetConfig):
    """MNIST, with the last `valid` images of the training file held out."""

    kind: Literal["mnist"] = "mnist"
    valid: int = Field(default=5_000, gt=0, lt=60_000)

    @override
    def load(self) -> Dataset:
        """Read the images, uint8 [rows, 1, 28, 28], downloading them if necessary."""
        images = read_idx(fetch("mnist", TRAIN_IMAGES)).unsqueeze(1)
        test = read_idx(fetch("mnist", TEST_IMAGES)).unsqueeze(1)
        cut = images.shape[0] - self.valid
        digest = hashlib.sha256(f"{TRAIN_IMAGES.md5} {TEST_IMAGES.md5}".encode())
        return Dataset(
            name=self.kind,
            space=eight_bit((1, SIDE, SIDE)),
            train=images[:cut],
            valid=images[cut:],
            test=test,
            checksum=f"sha256:{digest.hexdigest()}",
        )


def read_idx(path: Path) -> Tensor:
    """Read a gzip-compressed idx file of unsigned bytes as a uint8 tensor.

    Raises:
        DataError: the file is not an idx file of unsigned bytes, or is truncated.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(
            f"{path} is no whole gzip file ({error}); delete it and try again"
        ) from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(
            f"{path} is no idx file of unsigned bytes: it starts with {content[:4]!r}, "
            "expected 0, 0, 8 and the number of axes"
        )
    axes = content[3]
    shape = struct.unpack_from(f">{axes}I", content, 4)
    body = torch.frombuffer(bytearray(content[4 + 4 * axes :]), dtype=torch.uint8)
    expected = int(torch.tensor(shape).prod())
    if body.numel() != expected:
        raise DataError(f"{path} holds {body.numel()} bytes, its header says {shape} = {expected}")
    return body.reshape(shape)


def labels() -> tuple[Tensor, Tensor]:
    """The digits' classes: uint8 [60000] for `train` then `valid`, and [10000] for `test`."""
    return read_idx(fetch("mnist", TRAIN_LABELS)), read_idx(fetch("mnist", TEST_LABELS))
