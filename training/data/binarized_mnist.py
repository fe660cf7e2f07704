"""Binarised MNIST: binary [1, 28, 28] digits, each pixel drawn once with its grey as probability.

    x_0 ~ Bernoulli(grey / 255), drawn once: 50,000 train, 10,000 valid, 10,000 test

Source: Larochelle's static binarisation (Salakhutdinov and Murray 2008; Larochelle and Murray
2011), the files behind published log-likelihoods of "binarised MNIST, static".
"""

import hashlib
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.space import DataSpace
from training.data.dataset import DataError, Dataset, DataSetConfig
from training.data.files import RemoteFile, read

HOSTS = ("http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist",)
TRAIN = RemoteFile("binarized_mnist_train.amat", "db28b1a6ae0fe70cbd3da91acf46e477", HOSTS)
VALID = RemoteFile("binarized_mnist_valid.amat", "bf37822a04e94123630de6a7dfd9c9ef", HOSTS)
TEST = RemoteFile("binarized_mnist_test.amat", "14e41ae11040adba6ab8cb291eda0dd8", HOSTS)

SIDE = 28
LINE = 2 * SIDE * SIDE  # bytes of a line: one digit; each pixel is 0 or 1 and a separator


class BinarizedMnistConfig(DataSetConfig):
    """The published splits, without settings."""

    kind: Literal["binarized-mnist"] = "binarized-mnist"

    @override
    def load(self) -> Dataset:
        """Read the three files, downloading them if necessary."""
        files = (TRAIN, VALID, TEST)
        train, valid, test = (read_amat(read("binarized_mnist", f), f.name) for f in files)
        digest = hashlib.sha256(" ".join(file.md5 for file in files).encode())
        return Dataset(
            name=self.kind,
            space=DataSpace(kind="bits", shape=(1, SIDE, SIDE)),
            train=train,
            valid=valid,
            test=test,
            checksum=f"sha256:{digest.hexdigest()}",
        )


def read_amat(content: bytes, name: str) -> Tensor:
    """Parse the digits of one file, float32 [rows, 1, 28, 28] of 0 and 1.

    Raises:
        DataError: the text is not lines of 784 space-separated 0s and 1s.
    """
    if not content or len(content) % LINE:
        raise DataError(f"{name} holds {len(content)} bytes, expected a multiple of {LINE}")
    text = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    bits = text.view(-1, LINE)[:, ::2] - ord("0")
    if bool((bits > 1).any()):
        raise DataError(f"{name} holds other characters than 0 and 1 at the places of its pixels")
    return bits.float().view(-1, 1, SIDE, SIDE)
