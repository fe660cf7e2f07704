"""The dense networks: shapes, readouts per step, normalised basis functions, rows."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from diffusion.networks import MLP, RBF, MLPConfig, NetworkConfig, RBFConfig, build

D, T = 3, 7
CONFIGS = [
    MLPConfig(features=D, zero_out=False),
    MLPConfig(features=D, outputs=2, width=16, depth=1, clock="log_snr", zero_out=False),
    MLPConfig(features=D, activation="tanh", residual=False, embedding=9, zero_out=False),
    MLPConfig(
        features=D,
        width=50,
        activation="sigmoid",
        residual=False,
        embedding=0,
        readout_steps=T,
        zero_out=False,
    ),
    RBFConfig(features=D, outputs=2, T=T, zero_out=False),
]


def data(rows: int = T) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(1))


def made(config: MLPConfig | RBFConfig) -> MLP | RBF:
    torch.manual_seed(0)
    network = build(config)
    assert isinstance(network, MLP | RBF)
    return network


@pytest.mark.parametrize("config", CONFIGS)
def test_shapes_rows_and_gradients(config: MLPConfig | RBFConfig) -> None:
    network = made(config)
    x_t, time = data(), torch.arange(float(T))
    out = network(x_t, time)
    assert out.shape == (T, config.outputs * D)
    alone = torch.cat([network(x_t[i : i + 1], time[i : i + 1]) for i in range(T)])
    torch.testing.assert_close(alone, out, rtol=1e-5, atol=1e-6)
    out.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("config", CONFIGS)
def test_time_matters(config: MLPConfig | RBFConfig) -> None:
    out = made(config)(data(1).expand(2, -1), torch.tensor([0.0, 5.0]))
    assert (out[0] - out[1]).abs().max() > 1e-5


@pytest.mark.parametrize("config", CONFIGS)
def test_starts_from_zero(config: MLPConfig | RBFConfig) -> None:
    network = made(config.model_copy(update={"zero_out": True}))
    assert not network(data(), torch.arange(float(T))).any()


def test_the_clocks_ends_are_finite() -> None:
    network = made(MLPConfig(features=D, clock="log_snr", zero_out=False))
    assert network(data(2), torch.tensor([torch.inf, -torch.inf])).isfinite().all()


def test_a_readout_per_step_is_its_own_linear_layer() -> None:
    """At step i the network is W_i h + b_i; other steps' weights do not enter."""
    network = made(RBFConfig(features=D, units=4, T=T, zero_out=False))
    assert isinstance(network, RBF)
    x_t = data(2)
    readout, phi = network.readout, network.basis(x_t)
    for i in range(T):
        wanted = phi @ readout.weight[i].mT + readout.bias[i]
        torch.testing.assert_close(network(x_t, torch.full((2,), float(i))), wanted)
    network(x_t, torch.tensor([1.0, 4.0])).sum().backward()
    assert readout.weight.grad is not None
    touched = readout.weight.grad.abs().sum((1, 2)) > 0
    assert touched.nonzero().flatten().tolist() == [1, 4]


def test_basis_functions_sum_to_one() -> None:
    network = made(RBFConfig(features=D, T=T))
    assert isinstance(network, RBF)
    torch.nn.init.normal_(network.log_widths)
    x = torch.cat([data(), 1e3 * data()])  # far away too, where each function alone underflows
    phi = network.basis(x)
    assert phi.shape == (2 * T, 16)
    assert (phi >= 0).all()
    torch.testing.assert_close(phi.sum(1), torch.ones(2 * T))


def test_basis_functions_are_gaussians() -> None:
    """Their ratios are those of Gaussians, whatever the normaliser."""
    network = made(RBFConfig(features=D, units=2, T=T))
    assert isinstance(network, RBF)
    with torch.no_grad():
        network.log_widths.copy_(torch.tensor([0.3, -0.2]))
    x, widths = data(), network.log_widths.exp()
    gauss = [
        (-(x - c).square().sum(1) / (2 * w**2)).exp()
        for c, w in zip(network.centres, widths, strict=True)
    ]
    phi = network.basis(x)
    torch.testing.assert_close(phi[:, 0] / phi[:, 1], gauss[0] / gauss[1])


def test_configurations_round_trip() -> None:
    union: TypeAdapter[NetworkConfig] = TypeAdapter(NetworkConfig)
    for config in CONFIGS:
        assert union.validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"embedding": 0}, "cannot know the time"),
        ({"readout_steps": 5, "clock": "log_snr"}, "clock = 'step'"),
        ({"activation": "relu"}, "activation"),
        ({"units": 16}, "Extra inputs"),
    ],
)
def test_bad_configurations_teach(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        MLPConfig.model_validate({"features": D} | arguments)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_wrong_shape_teaches(config: MLPConfig | RBFConfig) -> None:
    with pytest.raises(ValueError, match=r"takes \[rows, 3\]"):
        made(config)(torch.zeros(2, D + 1), torch.zeros(2))


def test_centres_are_placed_among_the_data() -> None:
    """One in the middle of each of four clusters, and wide in proportion to the way to the next."""
    corners = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [-3.0, -1.0, 0.0]])
    x_0 = (corners[:, None] + 0.01 * torch.randn(4, 50, 3)).flatten(0, 1)
    network = made(RBFConfig(features=D, units=4, T=T))
    assert isinstance(network, RBF)
    network.place(x_0)
    means = x_0.view(4, 50, 3).mean(1)
    order = torch.cdist(means, network.centres).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(network.centres[order], means)
    apart = torch.tensor([2.0, 2.0, 2.0, 8.0**0.5])
    torch.testing.assert_close(network.log_widths[order].exp(), apart * 2 / 3, rtol=0.02, atol=0)
    with pytest.raises(ValueError, match=r"4 units need .* came 3"):
        network.place(corners[:3].repeat(5, 1))
