"""Network calls: joined or apart, filled or not, the same answers."""

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from diffusion.model import DiffusionModel
from diffusion.networks import MLP, RBF, MLPConfig, RBFConfig, UNet, UNetConfig
from diffusion.networks.base import Network
from diffusion.process import GaussianConfig
from diffusion.space import DataSpace
from service.engine.device.network import NetworkCalls, Precision, Rows, something_seen

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
    return Rows(torch.randn(count, *model.event), torch.randint(1, T + 1, (count,)))


def told() -> DiffusionModel:
    torch.manual_seed(0)
    return model_of(MLP(MLPConfig(features=3, width=32, zero_out=False, conditional=True)))


@torch.no_grad()
@pytest.mark.parametrize("fill", [0, 8])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-4), ("tf32", 1e-4), ("bfloat16", 0.05)]
)
def test_what_each_row_is_told(fill: int, precision: Precision, tolerance: float) -> None:
    """Chains and terms in one call or two, padded or not; what is told exactly comes back."""
    model = told()
    seen = something_seen(model, 3)
    chains, terms = rows(model, 3)._replace(seen=seen), rows(model, 2)
    wanted = [
        model.predict(part.x_t, part.t, observation=part.seen).x_0 for part in (chains, terms)
    ]
    assert not torch.allclose(model.predict(chains.x_t, chains.t).x_0, wanted[0], atol=0.2)
    calls = NetworkCalls(model, precision)
    calls.pad_to = fill
    for found in (calls(chains, terms), (calls(chains, None)[0], calls(None, terms)[1])):
        for prediction, x_0 in zip(found, wanted, strict=True):
            assert prediction is not None
            assert_close(prediction.x_0[: len(x_0)], x_0, rtol=tolerance, atol=tolerance)
        exact = found[0].x_0[:3][seen.certain]
        assert torch.equal(exact, torch.zeros_like(exact))
    both = calls(chains, terms._replace(seen=something_seen(model, 2)))[1]
    assert both is not None
    assert not torch.allclose(both.x_0[:2], wanted[1], atol=0.2)


@torch.no_grad()
@pytest.mark.parametrize("network", networks(), ids=lambda network: type(network).__name__)
@pytest.mark.parametrize("fill", [0, 8])
def test_joined_filled_or_apart(network: Network, fill: int) -> None:
    model = model_of(network)
    chains, terms = rows(model, 3), rows(model, 2)
    wanted = [model.predict(part.x_t, part.t).x_0 for part in (chains, terms)]
    calls = NetworkCalls(model)
    calls.pad_to = fill
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
    chain, term = NetworkCalls(model)(chains, None)[0], NetworkCalls(model)(None, terms)[1]
    low = NetworkCalls(model, "bfloat16")
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


class Watched(MLP):
    """Notes whether it may round its products."""

    allowed: ClassVar[list[bool]] = []

    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        self.allowed.append(torch.backends.cuda.matmul.allow_tf32)
        assert torch.backends.cudnn.allow_tf32 == self.allowed[-1]
        return super().given(x_t, *condition)


@torch.no_grad()
def test_products_are_rounded_for_sampling_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With "tf32" while the network is called for chains, and put back; never for terms."""
    monkeypatch.setattr(Watched, "allowed", [])
    model = model_of(Watched(MLPConfig(features=3, width=32, zero_out=False)))
    chains, terms = rows(model, 3), rows(model, 2)
    wanted = [model.predict(part.x_t, part.t).x_0 for part in (chains, terms)]
    calls = NetworkCalls(model, "tf32")
    Watched.allowed.clear()
    for found, x_0 in zip(calls(chains, terms), wanted, strict=True):
        assert found is not None
        assert_close(found.x_0, x_0, rtol=1e-2, atol=1e-2)
    assert Watched.allowed == [True, False]
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@torch.no_grad()
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "tf32"])
def test_compiled_where_asked(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains' network and terms', each once; answers stay."""
    compiled: list[nn.Module] = []

    def compile_(call: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        def run(*given: Tensor | tuple[Tensor, ...]) -> Tensor:
            compiled.append(call.__self__)  # type: ignore[attr-defined]
            return call(*given)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    model = model_of(MLP(MLPConfig(features=3, width=32, zero_out=False)))
    chains, terms = rows(model, 3), rows(model, 2)
    wanted = [
        found.x_0 for found in NetworkCalls(model, precision)(chains, terms) if found is not None
    ]
    assert not compiled
    found = NetworkCalls(model, precision, compiled=True)(chains, terms)
    assert len(compiled) == (1 if precision == "float32" else 2)
    for prediction, x_0 in zip(found, wanted, strict=True):
        assert prediction is not None
        assert torch.equal(prediction.x_0, x_0)
