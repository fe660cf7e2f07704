"""The paper's experiments: what of each artefact's evaluation is held beside which figure.

A figure of ours is read from a shipped artefact's evaluation; only the paper's own and those of
others are typed in.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from diffusion.checkpoint import Evaluation, Metadata
from diffusion.space import Convention
from training import data
from training.config import FitConfig
from training.evaluate import patches as peer

BIT = math.log(2)
#: -log2 of the standard normal's density, on average over data of unit variance.
NULL_BITS = 0.5 * math.log2(2 * math.pi * math.e)

Value = tuple[float, float]
"""A figure and its standard error."""


@dataclass(frozen=True)
class Quantity:
    """What of an evaluation is reported.

    Attributes:
        words: its name and unit.
        convention: of the evaluation that it is read from.
        of: the figure.
        digits: after the point.
    """

    words: str
    convention: Convention
    of: Callable[[Metadata, Evaluation], Value]
    digits: int = 3


@dataclass(frozen=True)
class Row:
    """A line of the table: one quantity of one artefact.

    Attributes:
        experiment: in words.
        model: whose artefact.
        quantity: what is read.
        paper: the paper's figure, "" where it has none.
        limit: the limit, or the best known of others.
    """

    experiment: str
    model: str
    quantity: Quantity
    paper: str = ""
    limit: str = ""


def _bits(_: Metadata, e: Evaluation) -> Value:
    return e.bits, e.standard_error / BIT


def _over_null(_: Metadata, e: Evaluation) -> Value:
    return (e.bound - e.null) / BIT, e.standard_error / BIT


def _nats(_: Metadata, e: Evaluation) -> Value:
    return -e.bound, e.standard_error


def _per_dim(m: Metadata, e: Evaluation) -> Value:
    return e.bits_per_dim, e.standard_error / BIT / m.space.dims


def unit_variance(m: Metadata, e: Evaluation) -> Value:
    """K in bits a pixel of data of unit variance, from bits/dim of 8-bit data.

    A level's probability is its density times 1 / deviation, the deviation in levels, so K is
    channels (log2 deviation - bits/dim); the paper's "pixel" sums the channels.
    """
    per_dim, error = _per_dim(m, e)
    deviation, channels = deviation_of(m), m.space.shape[0]
    return channels * (math.log2(deviation) - per_dim), channels * error


@cache
def _deviation(config: str) -> float:
    dataset = data.load(FitConfig.model_validate_json(config).data)
    return peer.unit_scale(dataset)[1]


def deviation_of(m: Metadata) -> float:
    """The standard deviation of an artefact's training data, dequantised, in levels."""
    return _deviation(json.dumps(m.training.config))


def unit_variance_over_null(m: Metadata, e: Evaluation) -> Value:
    """K - L_null in bits a pixel of data of unit variance."""
    value, error = unit_variance(m, e)
    return value + m.space.shape[0] * NULL_BITS, error


K = Quantity("K, bits", "paper", _bits)
K_OVER_NULL = Quantity("K - L_null, bits", "paper", _over_null)
OWN_LAST = Quantity("log-probability with the model's own last step, bits", "discretised", _bits)
BITS_PER_DIM = Quantity("bits/dim of the 256 levels", "discretised", _per_dim, 4)
NATS = Quantity("nats a digit", "discretised", _nats, 2)
PIXEL = Quantity("K, bits a pixel at unit variance", "discretised", unit_variance)
PIXEL_OVER_NULL = Quantity(
    "K - L_null, bits a pixel at unit variance", "discretised", unit_variance_over_null
)

ROLL, BEAT = "Swiss roll, T = 40", "Heartbeat, T = 2000"
CIFAR, LEAVES = "CIFAR-10, T = 1000", "Dead leaves, T = 1000"
ROWS = (
    Row(f"{ROLL}: an MLP", "swissroll", K, "2.35 (another noise)", "2.818, ideal kernel"),
    Row(f"{ROLL}: an MLP", "swissroll", K_OVER_NULL, "6.45 (another noise)"),
    Row(f"{ROLL}: 16 RBFs", "swissroll-paper", K, "2.35 (another noise)", "2.839, ideal kernel"),
    Row(f"{ROLL}: 16 RBFs", "swissroll-paper", K_OVER_NULL, "6.45 (another noise)"),
    Row(f"{BEAT}: the paper's network", "heartbeat-paper", K, "-2.414", "-2.371, ideal kernel"),
    Row(f"{BEAT}: the paper's network", "heartbeat-paper", OWN_LAST, "", "-2.322"),
    Row(f"{BEAT}: a residual MLP", "heartbeat", K, "-2.414", "-2.371, ideal kernel"),
    Row(f"{BEAT}: a residual MLP", "heartbeat", OWN_LAST, "", "-2.322"),
    Row(LEAVES, "deadleaves", PIXEL, "1.489 (other images)"),
    Row(LEAVES, "deadleaves", PIXEL_OVER_NULL, "3.536 (other images)"),
    Row("MNIST, T = 1000", "mnist", BITS_PER_DIM, "", "0.97 flows, 0.62 autoregressive"),
    Row("Binarised MNIST, T = 1000", "binarized-mnist", NATS, "", "79.0 to 79.9"),
    Row(CIFAR, "cifar10", BITS_PER_DIM, "4.20", "3.70 DDPM, 2.65 VDM"),
    Row(CIFAR, "cifar10", PIXEL, "5.4"),
    Row(CIFAR, "cifar10", PIXEL_OVER_NULL, "11.5"),
    Row("Textures, T = 1000", "textures", BITS_PER_DIM),
)
