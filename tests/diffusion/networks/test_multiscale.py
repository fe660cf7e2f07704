"""The paper's image network: shapes, bumps of time, rows, scales and where they do not shift."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from diffusion.distributions import Normal
from diffusion.model import DiffusionModel
from diffusion.networks import Multiscale, MultiscaleConfig, NetworkConfig, build
from diffusion.networks.multiscale import MultiscaleConv
from diffusion.process import GaussianConfig
from diffusion.schedule import LinearSchedule
from diffusion.space import DataSpace

T = 50
SMALL = {"shape": (2, 8, 12), "T": T, "channels": (4, 3), "pixel": (5,), "zero_out": False}
PATHS = [{}, {"dense": (7, 6)}, {"channels": (), "dense": (7,)}, {"outputs": 1, "scales": 1}]


def small(**changes: object) -> Multiscale:
    torch.manual_seed(0)
    network = build(MultiscaleConfig.model_validate(SMALL | changes))
    assert isinstance(network, Multiscale)
    return network


def images(rows: int = 3, height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(rows, 2, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", PATHS)
def test_shapes_rows_and_gradients(changes: dict[str, object]) -> None:
    network, x_t, time = small(**changes), images(), torch.tensor([0.0, 20.0, 49.0])
    out = network(x_t, time)
    assert out.shape == (3, network.config.outputs * 2, 8, 12)
    alone = torch.cat([network(x_t[i : i + 1], time[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, out, rtol=1e-5, atol=1e-6)
    one_time = network(x_t, network.condition(time[:1]))  # a condition that holds for all rows
    torch.testing.assert_close(one_time, network(x_t, time[:1].expand(3)))
    out.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_network_of_zeros_is_the_forward_kernel() -> None:
    """z = 0: Sigma = beta_t, mean = x_t (1 - beta_t) (Equations 64 and 65)."""
    network = small(zero_out=True, dense=(3,))
    process = GaussianConfig(T=T, schedule=LinearSchedule()).build()
    space = DataSpace(kind="image", shape=(2, 8, 12))
    model = DiffusionModel(process, network, space, "perturbation", None)
    t = torch.tensor([2, 17, T])
    kernel = model.reverse_kernel(images(), t, t - 1)
    assert isinstance(kernel, Normal)
    beta = process.beta[t].float().view(-1, 1, 1, 1)
    torch.testing.assert_close(kernel.mean, images() * (1 - beta), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kernel.var, beta.expand_as(kernel.mean), rtol=1e-5, atol=1e-8)


def test_bumps_sum_to_one_and_are_gaussians_of_time() -> None:
    """g_j / g_k = exp(-((t - tau_j)^2 - (t - tau_k)^2) / 2 w^2), the centres w apart in (0, T)."""
    network = small(bumps=5)
    time = torch.arange(float(T))
    (g,) = network.condition(time)
    assert g.shape == (T, 5)
    assert (g > 0).all()
    torch.testing.assert_close(g.sum(1), torch.ones(T))
    width, t = T / 5, time + 1
    tau = [(j + 0.5) * width for j in range(5)]
    for j in range(4):
        ratio = -((t - tau[j]) ** 2 - (t - tau[j + 1]) ** 2) / (2 * width**2)
        torch.testing.assert_close((g[:, j] / g[:, j + 1]).log(), ratio, rtol=1e-4, atol=1e-4)


def test_the_output_is_the_readout_weighed_by_the_bumps() -> None:
    network, x_t = small(bumps=4), images(1)
    each = torch.cat([network(x_t, (row[None],)) for row in torch.eye(4)])
    (g,) = network.condition(torch.tensor([13.0]))
    wanted = (g.view(4, 1, 1, 1) * each).sum(0, keepdim=True)
    torch.testing.assert_close(network(x_t, torch.tensor([13.0])), wanted, rtol=1e-5, atol=1e-6)


def test_a_shift_by_the_coarsest_square_shifts_the_output() -> None:
    """Away from the border, and by 4 pixels at 3 scales; by one pixel the squares are others."""
    network = small(shape=(2, 64, 64), channels=(4,), scales=3)
    x_t, time = torch.zeros(1, 2, 64, 64), torch.tensor([5.0])
    x_t[..., 24:32, 24:32] = images(1, 8, 8)
    out, inside = network(x_t, time), slice(12, 44)

    def shifted(by: int) -> Tensor:
        moved = network(x_t.roll((by, by), (2, 3)), time)
        return moved.roll((-by, -by), (2, 3))[..., inside, inside]

    torch.testing.assert_close(shifted(4), out[..., inside, inside], rtol=1e-5, atol=1e-6)
    assert (shifted(1) - out[..., inside, inside]).abs().max() > 1e-3


def test_the_dense_path_sees_the_whole_image() -> None:
    far = images(1)
    far[..., -1, -1] += 1.0
    for changes, sees in (({}, False), ({"dense": (7,)}, True)):
        network = small(scales=1, **changes)
        time = torch.tensor([5.0])
        change = (network(far, time) - network(images(1), time))[..., 0, 0]
        assert bool(change.abs().max() > 1e-7) is sees


def test_a_layer_sums_its_scales() -> None:
    """softplus of: the convolution, and that of the means over squares, repeated over them."""
    torch.manual_seed(0)
    layer, h = MultiscaleConv(2, 3, scales=3, kernel=3), images(2)
    total = torch.nn.functional.conv2d(h, layer.convs[0].weight, layer.convs[0].bias, padding=1)
    for k in (1, 2):
        s = 2**k
        mean = h.view(2, 2, 8 // s, s, 12 // s, s).mean((3, 5))
        coarse = torch.nn.functional.conv2d(mean, layer.convs[k].weight, padding=1)
        total = total + coarse.repeat_interleave(s, 2).repeat_interleave(s, 3)
    torch.testing.assert_close(layer(h), torch.log1p(total.exp()))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    torch.testing.assert_close(layer(h), torch.full((2, 3, 8, 12), math.log(2)))


def test_a_configuration_round_trips() -> None:
    union: TypeAdapter[NetworkConfig] = TypeAdapter(NetworkConfig)
    for changes in PATHS:
        config = MultiscaleConfig.model_validate(SMALL | changes)
        assert union.validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"channels": ()}, "no path"),
        ({"kernel": 4}, "odd"),
        ({"scales": 5}, "multiples of 16"),
        ({"width": 3}, "Extra inputs"),
    ],
)
def test_bad_configurations_teach(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        MultiscaleConfig.model_validate(SMALL | changes)


def test_a_wrong_shape_or_number_of_steps_teaches() -> None:
    network = small()
    with pytest.raises(ValueError, match=r"takes \[rows, 2, 8, 12\]"):
        network(images(1, 12, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="data have shape"):
        network.config.check((1, 8, 12), T)
    with pytest.raises(ValueError, match="span 50 steps"):
        network.config.check((2, 8, 12), T + 1)
