"""A fit small enough to run in a second or two, through the same configuration as a real one."""

from pathlib import Path

import pytest

from training.config import FitConfig, load

SMALL = """
title = "a small swiss roll"
prediction = "v"
variance = "moment"
batch = 64
steps = 12
seed = 3

[data]
kind = "swissroll"
noise = 0.05
train = 300
valid = 64
test = 64

[process]
kind = "gaussian"
T = 10
schedule = { kind = "linear-log-snr", first = 6.0, last = -4.0 }

[network]
kind = "mlp"
features = 2
outputs = 2
width = 16
depth = 2
embedding = 8

[objective]
steps = "importance"

[optimiser]
warmup = 3

[watch]
every = 6
data = 16
terms = 6
samples = 8
sampler_steps = 5

[evaluation]
conventions = ["density", "paper"]
data = 32
"""


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """The configuration as a file."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def small(small_file: Path) -> FitConfig:
    """The configuration, read."""
    return load(str(small_file))


@pytest.fixture
def leaves_file(small_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with a few dead leaves for data, and a folder of its own to write into."""
    before, _, after = small_file.read_text().partition("[data]")
    rest = after[after.index("[process]") :]
    data = 'kind = "deadleaves"\nside = 4\ntrain = 400\nvalid = 60\ntest = 80\n'
    path = small_file.with_name("leaves.toml")
    path.write_text(f"{before}[data]\n{data}\n{rest}")
    monkeypatch.chdir(path.parent)
    return path
