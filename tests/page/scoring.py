"""Models for tests of the Likelihood view, and helpers to read it."""

import zlib
from base64 import urlsafe_b64decode
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.checkpoint import Evaluation, Metadata
from diffusion.model import DiffusionModel
from tests.service.http.conftest import bit_patterns, grey_images

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

Bytes = NDArray[np.uint8]


GREYS = torch.arange(20 * 48).reshape(20, 1, 6, 8) % 256
QUANTILES = tuple(-12 + 0.12 * i for i in range(101))  # of bit patterns, nats


def measured() -> tuple[DiffusionModel, Metadata]:
    """Bit patterns that know what held-out ones score."""
    model, metadata = bit_patterns()
    found = Evaluation(
        convention="discretised",
        split="test",
        count=1000,
        bound=-6.0,
        standard_error=0.1,
        bits=-8.7,
        bits_per_dim=1.1,
        null=-9.0,
        quantiles=QUANTILES,
    )
    return model, metadata.model_copy(update={"evaluation": (found,)})


def digits() -> tuple[DiffusionModel, Metadata]:
    """The grey model as one of MNIST's size."""
    model, metadata = grey_images()
    space = metadata.space.model_copy(update={"shape": (1, 28, 28)})
    model = DiffusionModel(model.process, model.network, space, "v", "lower")
    return model, metadata.model_copy(update={"name": "digits", "space": space})


def fields_of(page: "Page") -> dict[str, str]:
    """The fields of a page's link."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def chooser(page: "Page") -> "Locator":
    """Where files are chosen, once the view has a model to take them for."""
    page.get_by_role("button", name="Choose files").wait_for()
    return page.locator("input[type=file]")


def score(page: "Page") -> None:
    """Ask, and wait until the answer is shown."""
    page.get_by_role("button", name="How likely?").click()
    page.locator(".answer:not(.stale) .verdict").first.wait_for()


def figures(page: "Page") -> list[str]:
    """The bits/dim that are shown."""
    return page.locator(".score strong").all_inner_texts()


def pictures(page: "Page", shape: tuple[int, ...]) -> Bytes:
    """The data of a link."""
    packed = zlib.decompress(urlsafe_b64decode(fields_of(page)["data"] + "=="))
    return np.frombuffer(packed, np.uint8).reshape(-1, *shape)
