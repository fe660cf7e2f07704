"""The peer's densities are densities, and its units are those of the paper."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.checkpoint import read_metadata
from diffusion.networks import GaussianMixture
from diffusion.space import DataSpace
from training.cli import main
from training.data import DataError, Dataset, HeartbeatConfig, load
from training.evaluate.patches import (
    L_NULL,
    PeerConfig,
    causal_log_prob,
    compare,
    dequantised,
    diffusion,
    marginal,
    measured,
    offsets,
    tile_log_prob,
    unit_scale,
    windows,
)


def mixture(dims: int, components: int = 3) -> GaussianMixture:
    stream = torch.Generator().manual_seed(dims)
    root = torch.randn(components, dims, dims, generator=stream, dtype=torch.float64) / dims**0.5
    means = 0.7 * torch.randn(components, dims, generator=stream, dtype=torch.float64)
    covariances = 0.1 * torch.eye(dims, dtype=torch.float64) + 0.3 * root @ root.mT
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    return GaussianMixture.from_values(weights, means, (covariances + covariances.mT) / 2)


def images(x: Tensor) -> Dataset:
    """A data set of grey images [N, H, W], the same ones in each split."""
    space = DataSpace(kind="image", shape=(1, *x.shape[1:]), shift=127.5, scale=128.0, levels=256)
    rows = x[:, None]
    return Dataset("some", space, rows, rows, rows, "sha256:0")


@pytest.mark.parametrize("shape", [(1, 2), (2, 1)])
def test_the_causal_density_integrates_to_one(shape: tuple[int, int]) -> None:
    places = offsets(above=1, beside=1)
    axis = torch.linspace(-5, 5, 201, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis).view(-1, *shape)
    density = causal_log_prob(mixture(len(places)), z, places).exp()
    assert float(density.sum()) * float(axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-6)


def test_the_causal_density_is_a_product_of_conditionals() -> None:
    places = offsets(above=0, beside=1)  # a pixel and the one on its left
    one = mixture(2)
    z = torch.randn(9, 1, 3, dtype=torch.float64)
    left, right = marginal(one, [0]), marginal(one, [1])
    expected = right.log_prob(z[:, 0, :1])
    for j in (1, 2):
        pair = z[:, 0, j - 1 : j + 1]
        expected = expected + one.log_prob(pair) - left.log_prob(pair[:, :1])
    torch.testing.assert_close(causal_log_prob(one, z, places), expected)


def test_tiles_are_independent_and_keep_their_pixels_in_order() -> None:
    one = mixture(4)
    z = torch.randn(5, 4, 6, dtype=torch.float64)
    expected = sum(
        one.log_prob(z[:, i : i + 2, j : j + 2].flatten(1)) for i in (0, 2) for j in (0, 2, 4)
    )
    torch.testing.assert_close(tile_log_prob(one, z, 2), expected)


def test_places_are_those_before_a_pixel_in_reading_order() -> None:
    assert offsets(1, 1) == [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0)]
    assert len(offsets(3, 3)) == 25


def test_windows_are_cut_from_everywhere() -> None:
    x = torch.arange(2 * 3 * 4).view(2, 3, 4)
    found = windows(x, 2, 3, 4000, seed=1)
    first = found[:, 0, 0]
    assert torch.equal(found[:, 1, 2], first + 6)
    count = torch.bincount(first)[[0, 1, 4, 5, 12, 13, 16, 17]]
    assert int(count.sum()) == 4000
    deviation = math.sqrt(4000 * (1 / 8) * (7 / 8))
    assert float((count - 500).abs().max()) < 4 * deviation


def test_dequantised_levels_have_unit_variance_and_keep_their_cells() -> None:
    x = torch.randint(0, 256, (400, 8, 8), dtype=torch.uint8)
    mean, scale = unit_scale(images(x))
    z = dequantised(x, mean, scale, seed=1)
    assert abs(float(z.mean())) < 4 / math.sqrt(z.numel())
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(0.8 / z.numel())  # E z^4 - 1 = 4/5, uniform
    assert torch.equal((z * scale + mean).round(), x.double())


def test_uniform_levels_are_eight_bits_and_a_uniform_density_of_unit_variance() -> None:
    found = measured("uniform", 8.0, 0.0, math.sqrt(256**2 / 12), 1)
    assert math.isclose(found.K, -math.log2(math.sqrt(12)))
    assert found.gain == found.K - L_NULL
    assert math.isclose(L_NULL, -2.047, abs_tol=1e-3)


def test_white_noise_has_its_entropy_by_both_mixtures() -> None:
    pytest.importorskip("sklearn")
    sigma = 20.0
    x = (128 + sigma * torch.randn(600, 4, 4)).round().clamp(0, 255).to(torch.uint8)
    config = PeerConfig(components=1, tile=2, above=1, beside=1, patches=4000, iterations=10)
    entropy = math.log2(sigma * math.sqrt(2 * math.pi * math.e))
    for found in compare(images(x), config):
        assert abs(found.bits_per_dim - entropy) < 4 * found.error + 0.01  # of fitted parameters
        assert found.gain == pytest.approx(0.0, abs=4 * found.error + 0.01)
        assert found.parameters in (14, 20)


def test_a_mixture_learns_that_neighbours_agree() -> None:
    pytest.importorskip("sklearn")
    x = torch.randint(30, 220, (500, 1, 1)) + torch.randint(-3, 4, (500, 4, 4))
    config = PeerConfig(components=2, tile=2, above=1, beside=1, patches=4000, iterations=20)
    tiles, causal = compare(images(x.to(torch.uint8)), config)
    alone = math.log2(190)
    floor = math.log2(7)  # the noise's own
    assert floor < causal.bits_per_dim < tiles.bits_per_dim < alone - 1


def test_other_data_are_refused() -> None:
    with pytest.raises(DataError, match="images of levels"):
        compare(load(HeartbeatConfig(train=9, valid=9, test=9)), PeerConfig())
    colours = DataSpace(kind="image", shape=(3, 4, 4), levels=256)
    rows = torch.zeros(9, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match="has 3 channels"):
        compare(Dataset("some", colours, rows, rows, rows, "sha256:0"), PeerConfig())
    with pytest.raises(DataError, match="do not fill 4 x 4"):
        compare(images(torch.zeros(9, 4, 4, dtype=torch.uint8)), PeerConfig(tile=3))


def test_the_command_writes_what_it_prints(
    leaves_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    sizes = ["--components", "2", "--tile", "2", "--above", "1", "--beside", "1"]
    words = ["peer", str(leaves_file), "--data", "50", "--patches", "500", *sizes]
    assert main(words) == 0
    found = json.loads(Path("runs/peer/leaves.json").read_text())["found"]
    assert [row["data"] for row in found] == [50, 50]
    printed = capsys.readouterr().out
    for row in found:
        assert f"| {row['K']:.3f} | {row['gain']:.3f} | {row['bits_per_dim']:.3f} |" in printed


def test_a_diffusion_models_bound_is_put_into_the_same_units() -> None:
    shipped = Path(__file__).parents[2] / "models" / "mnist" / "model.safetensors"
    metadata = read_metadata(shipped)
    x = torch.randint(0, 256, (50, 4, 4), dtype=torch.uint8)
    found = diffusion(metadata, images(x))
    assert found is not None
    (e,) = (e for e in metadata.evaluation if e.whole and e.convention == "discretised")
    # Wherever it stands: those of shorter chains are another bound.
    metadata = metadata.model_copy(update={"evaluation": metadata.evaluation[::-1]})
    assert diffusion(metadata, images(x)) == found
    assert found.bits_per_dim == e.bits_per_dim
    assert math.isclose(found.K, math.log2(unit_scale(images(x))[1]) - e.bits_per_dim)
    assert math.isclose(found.error, e.standard_error / math.log(2) / 784)
    assert diffusion(metadata.model_copy(update={"evaluation": ()}), images(x)) is None
