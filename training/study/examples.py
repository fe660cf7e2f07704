"""Make the request bodies of README's curl commands from MNIST's test digits.

observed = x_0 + noise_std n for /denoise;    transparent pixels are not observed for /inpaint
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusion.noise import Stream, counter_noise
from training import data
from training.data.mnist import MnistConfig

DIGITS = (4, 9, 12)  # a four and two nines: none is a digit upside down
HIDDEN = (0, 1, 4)
NOISE_STD = 64.0


def png(image: Tensor, known: Tensor | None = None) -> str:
    """Encode a grey image [H, W] as a base64 PNG, transparent where not `known`."""
    grey = Image.fromarray(image.to(torch.uint8).numpy())
    if known is not None:
        blank = Image.fromarray(torch.where(known, image, 0).to(torch.uint8).numpy())
        alpha = Image.fromarray((known * 255).to(torch.uint8).numpy())
        grey = Image.merge("LA", (blank, alpha))
    buffer = io.BytesIO()
    grey.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def requests(test: Tensor) -> dict[str, dict[str, Any]]:
    """Make the request bodies by name from the test images [N, 1, 28, 28]."""
    digits = [test[i, 0] for i in DIGITS]
    rows = torch.arange(len(DIGITS))
    normal = counter_noise(0, rows, 0, Stream.DATA).normal((28, 28))
    uniform = counter_noise(0, rows, 1, Stream.DATA).uniform((28, 28))
    left = torch.zeros(28, 28, dtype=torch.bool)
    left[:, :14] = True
    noisy = torch.stack(digits).float() + NOISE_STD * normal
    data = [*digits, *(digit.flip(0) for digit in digits), (uniform[0] * 256).floor()]
    return {
        "loglik": {"model": "mnist", "data": [png(x) for x in data], "terms": 100, "seed": 7},
        "inpaint": {
            "model": "mnist",
            "observed": [png(test[i, 0], left) for i in HIDDEN],
            "num_samples": 4,
            "seed": 7,
        },
        "denoise": {
            "model": "mnist",
            "observed": noisy.round().int().tolist(),
            "noise_std": NOISE_STD,
            "num_samples": 4,
            "seed": 7,
        },
    }


def make(folder: Path) -> list[Path]:
    """Write `NAME.json` for each request; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, body in requests(data.load(MnistConfig()).test).items():
        made.append(folder / f"{name}.json")
        made[-1].write_text(json.dumps(body) + "\n")
    return made
