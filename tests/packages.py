"""A package as pip installs it: a module, and its entry points beside it."""

from pathlib import Path

import pytest

#: A network of somebody's own, in their own PyTorch, registered as docs/networks.md says.
LINES = '''
"""Straight lines: out = a(time) x_t + b(time)."""

from typing import Literal

import torch
from diffusion.networks import InstalledConfig, Network
from torch import Tensor, nn


class LinesConfig(InstalledConfig):
    kind: Literal["lines"] = "lines"
    features: int
    slope: float = 0.5

    def check(self, event: tuple[int, ...], T: int) -> None:
        if event != (self.features,):
            raise ValueError(f"lines take vectors of {self.features}, came {list(event)}")

    def build(self) -> Network:
        return Lines(self)


class Lines(Network):
    clock = "step"

    def __init__(self, config: LinesConfig) -> None:
        super().__init__()
        self.config = config
        self.of_time = nn.Linear(1, 2 * config.outputs * config.features)

    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        return (self.of_time(time[:, None] / 100) + self.config.slope,)

    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        a, b = condition[0].chunk(2, dim=1)
        return torch.addcmul(b, a, x_t.repeat(1, self.config.outputs))
'''


def install(
    folder: Path,
    patch: pytest.MonkeyPatch,
    code: str = LINES,
    *,
    package: str = "their_lines",
    point: str = "lines = {package}:LinesConfig",
) -> None:
    """Put a package on the path, as if pip had."""
    folder.mkdir(exist_ok=True)
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    named = point.format(package=package)
    (info / "entry_points.txt").write_text(f"[noneq.networks]\n{named}\n")
    patch.syspath_prepend(str(folder))
    patch.delitem(__import__("sys").modules, package, raising=False)
