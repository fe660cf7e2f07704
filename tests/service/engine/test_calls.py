"""Network calls: joined or apart, filled or not, the same answers."""

import pytest
import torch
from torch.testing import assert_close

from diffusion.model import DiffusionModel
from diffusion.networks import MLP, RBF, MLPConfig, RBFConfig, UNet, UNetConfig
from diffusion.networks.base import Network
from diffusion.process import GaussianConfig
from diffusion.space import DataSpace
from service.engine.calls import Calls, Rows

T = 12


def networks() -> list[Network]:
    torch.manual_seed(0)
    unet = UNetConfig(
        channels=(8, 16), attention=(False, True), norm_groups=4, zero_out=False, fourier=(2,)
    )
    return [
        UNet(unet),
        MLP(MLPConfig(features=3, width=32, zero_out=False)),
        MLP(MLPConfig(features=3, width=32, readout_steps=T, embedding=0, zero_out=False)),
        RBF(RBFConfig(features=3, T=T, zero_out=False)),
    ]


def model_of(network: Network) -> DiffusionModel:
    image = isinstance(network, UNet)
    space = (
        DataSpace(kind="image", shape=(1, 8, 8), shift=127.5, scale=127.5, levels=256)
        if image
        else DataSpace(kind="vector", shape=(3,))
    )
    return DiffusionModel(GaussianConfig(T=T).build(), network, space, "v", "lower").eval()


def rows(model: DiffusionModel, count: int) -> Rows:
    return torch.randn(count, *model.event), torch.randint(1, T + 1, (count,))


@torch.no_grad()
@pytest.mark.parametrize("network", networks(), ids=lambda network: type(network).__name__)
@pytest.mark.parametrize("fill", [0, 8])
def test_joined_filled_or_apart(network: Network, fill: int) -> None:
    model = model_of(network)
    chains, terms = rows(model, 3), rows(model, 2)
    wanted = [model.predict(*part).x_0 for part in (chains, terms)]
    calls = Calls(model)
    calls.fill = fill
    for found in (calls(chains, terms), (calls(chains, None)[0], calls(None, terms)[1])):
        for prediction, x_0 in zip(found, wanted, strict=True):
            assert prediction is not None
            assert len(prediction.x_0) == (fill or len(x_0))
            assert_close(prediction.x_0[: len(x_0)], x_0, rtol=1e-4, atol=1e-5)
    assert calls(chains, None)[1] is None


@torch.no_grad()
@pytest.mark.parametrize("network", networks(), ids=lambda network: type(network).__name__)
def test_fewer_bits_are_for_sampling_alone(network: Network) -> None:
    """bfloat16 has eight bits: chains to a hundredth, bounds bit for bit as without it."""
    model = model_of(network)
    chains, terms = rows(model, 3), rows(model, 2)
    chain, term = Calls(model)(chains, None)[0], Calls(model)(None, terms)[1]
    low = Calls(model, "bfloat16")
    found = low(chains, terms)
    assert chain is not None
    assert term is not None
    assert found[0] is not None
    assert found[1] is not None
    assert torch.equal(found[1].x_0, term.x_0)
    assert found[0].x_0.dtype == torch.float32
    distance = (found[0].x_0 - chain.x_0).norm() / chain.x_0.norm()
    assert 0 < distance < 0.02
    assert all(p.dtype == torch.float32 for p in model.network.parameters())
