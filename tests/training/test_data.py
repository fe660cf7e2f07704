"""Data are what they are said to be: densities integrate, splits are disjoint, files checked."""

import gzip
import hashlib
import math
import struct
from pathlib import Path

import pytest
import torch

from training.data import HeartbeatConfig, MnistConfig, SwissRollConfig, files, load, mnist
from training.data.dataset import DataError
from training.data.files import RemoteFile, fetch
from training.data.heartbeat import patterns
from training.data.swissroll import FIRST, LAST, SwissRoll


def test_swiss_roll_has_mean_0_and_variance_1_in_closed_form() -> None:
    roll = SwissRoll(noise=0.1)
    phi, weight = roll.nodes()
    share = (weight / (LAST - FIRST))[:, None]
    centre = roll.curve(phi)
    mean = (share * centre).sum(0)
    variance = (share * centre.square()).sum() / 2 + roll.noise**2
    assert torch.allclose(mean, torch.zeros(2, dtype=torch.float64), atol=1e-9)
    assert math.isclose(float(variance), 1.0, abs_tol=1e-9)


def test_swiss_roll_density_integrates_to_one() -> None:
    roll = SwissRoll(noise=0.15)
    axis = torch.linspace(-3.2, 3.2, 161, dtype=torch.float64)
    density = roll.log_density(torch.cartesian_prod(axis, axis)).exp()
    assert math.isclose(float(density.sum()) * float(axis[1] - axis[0]) ** 2, 1.0, abs_tol=1e-3)


def test_swiss_roll_density_near_the_nearest_points_is_the_whole_one() -> None:
    roll = SwissRoll(noise=0.02)  # just under where the short way begins
    ends = roll.curve(torch.tensor([FIRST, LAST], dtype=torch.float64))
    x = torch.cat(
        [
            roll.draw(200, torch.Generator().manual_seed(1))[0],
            (ends + 0.03 * torch.randn(20, 2, 2, dtype=torch.float64)).flatten(0, 1),
        ]
    )
    phi, weight = roll.nodes()
    square = (x[:, None] - roll.curve(phi)).square().sum(-1)
    exponent = -0.5 * square / roll.noise**2 + torch.log(weight / (LAST - FIRST))
    whole = exponent.logsumexp(1) - math.log(2 * math.pi * roll.noise**2)
    assert torch.allclose(roll.log_density(x), whole, atol=1e-6)


@pytest.mark.parametrize("noise", [0.15, 0.01])
def test_swiss_roll_entropy_agrees_with_plain_sampling(noise: float) -> None:
    roll = SwissRoll(noise)
    entropy, error = roll.entropy(rows=1500)
    other = -roll.log_density(roll.draw(1500, torch.Generator().manual_seed(9))[0])
    spread = math.hypot(error, float(other.std()) / math.sqrt(len(other)))
    assert abs(entropy - float(other.mean())) < 4 * spread
    assert error < float(other.std()) / math.sqrt(len(other))  # the control variate is worth it


def test_splits_are_disjoint_and_repeatable() -> None:
    config = SwissRollConfig(train=500, valid=200, test=200)
    one, two = load(config), load(config)
    assert one.checksum == two.checksum
    assert torch.equal(one.test, two.test)
    rows = torch.cat([one.train, one.valid, one.test])
    assert len(torch.unique(rows, dim=0)) == len(rows)
    longer = load(SwissRollConfig(train=900, valid=200, test=200))
    assert torch.equal(longer.test, one.test)  # how much is fitted to does not move the test
    assert load(SwissRollConfig(train=500, valid=200, test=200, seed=1)).checksum != one.checksum


def test_heartbeat_has_five_patterns_and_a_fifth_of_ones() -> None:
    dataset = load(HeartbeatConfig(train=400, valid=100, test=100))
    found = torch.unique(dataset.train, dim=0)
    assert len(found) == 5
    assert torch.equal(found.sum(0), torch.ones(20))
    assert torch.equal(torch.sort(found, 0).values, torch.sort(patterns(20, 5), 0).values)
    assert float(dataset.train.mean()) == pytest.approx(0.2)
    assert dataset.entropy == (math.log(5), 0.0)
    assert dataset.log_density is not None
    broken = dataset.train[:1].clone()
    broken[0, 0] = 1 - broken[0, 0]
    assert float(dataset.log_density(broken)) == -math.inf
    assert float(dataset.log_density(dataset.train[:1])) == pytest.approx(-math.log(5))


def test_space_takes_each_data_set() -> None:
    for config in (SwissRollConfig(train=10, valid=10, test=10), HeartbeatConfig(train=10)):
        dataset = load(config)
        dataset.space.check(dataset.test)


def idx(values: torch.Tensor) -> bytes:
    """A gzip-compressed idx file."""
    header = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(header + values.numpy().tobytes())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with tiny images in MNIST's place, and their sums as the published ones."""
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    for name, rows in (("TRAIN_IMAGES", 30), ("TEST_IMAGES", 7)):
        content = idx(torch.randint(0, 256, (rows, 28, 28), dtype=torch.uint8))
        real = getattr(mnist, name)
        (tmp_path / "mnist" / real.name).write_bytes(content)
        sum_ = hashlib.md5(content, usedforsecurity=False).hexdigest()
        monkeypatch.setattr(mnist, name, RemoteFile(real.name, sum_, ()))
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_mnist_is_read_from_the_folder_and_split() -> None:
    dataset = load(MnistConfig(valid=10))
    assert [len(dataset.split(name)) for name in ("train", "valid", "test")] == [20, 10, 7]
    assert dataset.train.dtype == torch.uint8
    dataset.space.check(dataset.test.float())


def test_a_corrupt_file_is_refused_and_named(folder: Path) -> None:
    path = folder / "mnist" / mnist.TEST_IMAGES.name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"t10k-images.*corrupt.*expected"):
        load(MnistConfig(valid=10))


def test_a_missing_file_is_named_with_the_variable(folder: Path) -> None:
    (folder / "mnist" / mnist.TEST_IMAGES.name).unlink()
    with pytest.raises(DataError, match=r"does not exist.*NONEQ_DATA"):
        load(MnistConfig(valid=10))


def test_a_foreign_idx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"GIF89a"))
    with pytest.raises(DataError, match="no idx file"):
        mnist.read_idx(path)
    path.write_bytes(b"GIF89a")
    with pytest.raises(DataError, match="gzip"):
        mnist.read_idx(path)


def served(tmp_path: Path, content: bytes) -> RemoteFile:
    """A published file on a "host" that is a folder."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "a.gz").write_bytes(content)
    hosts = ((tmp_path / "nowhere").as_uri(), (tmp_path / "host").as_uri())
    return RemoteFile("a.gz", hashlib.md5(b"right", usedforsecurity=False).hexdigest(), hosts)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder, a cache of one's own, no waiting between attempts."""
    monkeypatch.delenv(files.VARIABLE, raising=False)
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.mark.usefixtures("offline")
def test_a_download_falls_back_to_the_next_host_and_is_kept(tmp_path: Path) -> None:
    file = served(tmp_path, b"right")
    path = fetch("set", file)
    assert path.read_bytes() == b"right"
    (tmp_path / "host" / "a.gz").unlink()
    assert fetch("set", file) == path  # from the cache


@pytest.mark.usefixtures("offline")
def test_a_wrong_download_is_not_kept_and_says_what_to_set(tmp_path: Path) -> None:
    file = served(tmp_path, b"wrong")
    with pytest.raises(DataError, match=r"(?s)could not download a\.gz.*NONEQ_DATA.*md5"):
        fetch("set", file)
    assert list((tmp_path / "cache" / "set").iterdir()) == []
