"""The U-Net: sizes, clocks and rows. tests/training holds it against diffusers' own."""

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from diffusion.networks import UNet, UNetConfig
from diffusion.networks.embedding import as_steps, sinusoidal, with_fourier

SMALL = {"channels": (8, 16), "blocks": 1, "norm_groups": 4, "zero_out": False}


def small(**changes: object) -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig.model_validate(SMALL | changes)).eval()


def images(rows: int = 3, channels: int = 1, height: int = 8, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, channels, height, width, generator=generator)


@pytest.mark.parametrize("resample", ["conv", "residual"])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (7, 9), (5, 6)])
def test_any_size(height: int, width: int, padding: int, resample: str) -> None:
    changes = {"downsample_padding": padding, "resample": resample}
    unet = small(channels=(8, 8, 8), outputs=2, in_channels=2, **changes)
    assert unet(images(2, 2, height, width), torch.zeros(2)).shape == (2, 4, height, width)


def test_a_row_alone_equals_the_row_in_a_batch() -> None:
    unet = small(attention=(False, True), mid_attention=True, fourier=(1, 2))
    x_t, time = images(5), torch.tensor([0.0, 1.0, 10.0, 100.0, 999.0])
    with torch.no_grad():
        together = unet(x_t, time)
        alone = torch.cat([unet(x_t[i : i + 1], time[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_time_matters() -> None:
    unet = small()
    out = unet(images(1).expand(3, -1, -1, -1), torch.tensor([0.0, 1.0, 999.0]))
    assert (out[0] - out[1]).abs().max() > 1e-6
    assert (out[1] - out[2]).abs().max() > 1e-6


def test_a_scale_of_time_is_another_time() -> None:
    whole, half = small(), small(time_scale=0.5)
    time = torch.tensor([0.0, 4.0, 990.0])
    torch.testing.assert_close(half(images(), time), whole(images(), time / 2))


def test_as_many_heads_are_heads_of_as_many_channels() -> None:
    by_number, by_width = (
        small(attention=(False, True), **changes) for changes in ({"heads": 4}, {"head_dim": 4})
    )
    time = torch.arange(3.0)
    torch.testing.assert_close(by_number(images(), time), by_width(images(), time))
    one = small(attention=(False, True))
    assert (one(images(), time) - by_width(images(), time)).abs().max() > 1e-6


def test_starts_from_zero() -> None:
    assert not small(zero_out=True)(images(), torch.zeros(3)).any()


def test_memory_format_changes_nothing() -> None:
    unet = small(attention=(True, False), mid_attention=True)
    x_t, time = images(), torch.arange(3.0)
    with torch.no_grad():
        wanted = unet(x_t, time)
        found = unet.to(memory_format=torch.channels_last)(  # type: ignore[call-overload]
            x_t.contiguous(memory_format=torch.channels_last), time
        )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_clocks_ends_are_finite() -> None:
    unet = small(clock="log_snr")
    time = torch.tensor([torch.inf, 0.0, -torch.inf])
    assert unet.clock == "log_snr"
    assert unet(images(), time).isfinite().all()
    steps = as_steps(torch.linspace(-20, 20, 9), "log_snr")
    assert all(a > b for a, b in pairwise(steps.tolist()))  # more signal, earlier
    assert steps[0] == 1000
    assert steps[-1] == 0


def test_every_parameter_is_trained() -> None:
    more = {"scale_shift": True, "resample": "residual", "heads": 2}
    unet = small(attention=(True, False), mid_attention=True, fourier=(0,), **more).train()
    unet(images(), torch.arange(3.0)).square().sum().backward()
    assert [n for n, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_fourier_features() -> None:
    x_t = images(1, 2, 3, 3)
    found = with_fourier(x_t, (5, 7))
    assert found.shape == (1, 10, 3, 3)
    torch.testing.assert_close(found[:, :2], x_t)
    for i, k in enumerate((5, 7)):
        sin, cos = found[:, 2 + 4 * i : 4 + 4 * i], found[:, 4 + 4 * i : 6 + 4 * i]
        torch.testing.assert_close(sin.square() + cos.square(), torch.ones_like(sin))
        # Period 2 / 2^k: a step of 2 / 256 turns the k-th pair by 2 pi 2^k / 256.
        turned = with_fourier(x_t + 2.0 / 2**k, (5, 7))[:, 2 + 4 * i : 6 + 4 * i]
        torch.testing.assert_close(turned, torch.cat([sin, cos], 1), atol=2e-3, rtol=0)
    assert with_fourier(x_t, ()) is not None


@pytest.mark.parametrize("dim", [8, 9])
def test_embedding_turns_evenly(dim: int) -> None:
    """<e(u), e(u + d)> depends on d alone: angles add."""
    u = torch.arange(6.0)
    e, later = sinusoidal(u, dim), sinusoidal(u + 3, dim)
    assert e.shape == (6, dim)
    products = (e * later).sum(-1)
    torch.testing.assert_close(products, products[:1].expand(6))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attention": (True,)}, "one boolean for each"),
        ({"norm_groups": 3}, "norm_groups 3"),
        ({"mid_attention": True, "head_dim": 5}, "head_dim 5"),
        ({"attention": (True, False), "head_dim": 16}, "head_dim 16"),
        ({"attention": (True, False), "heads": 3}, "heads 3"),
        ({"queries": 2}, "Extra inputs"),
        ({"outputs": 3}, "outputs"),
    ],
)
def test_bad_configurations_teach(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        UNetConfig.model_validate(SMALL | changes)


def test_a_wrong_shape_teaches() -> None:
    with pytest.raises(ValueError, match=r"takes images \[1, height, width\]"):
        small()(images(2, 3), torch.zeros(2))


def test_patches_fold_pixels_into_channels() -> None:
    config = {"channels": (8, 16), "zero_out": False, "clock": "log_snr"}
    torch.manual_seed(0)
    folded = UNet(UNetConfig(in_channels=1, patch=2, **config)).eval()
    torch.manual_seed(0)
    plain = UNet(UNetConfig(in_channels=4, **config)).eval()
    x_t, time = torch.randn(3, 1, 12, 8), torch.tensor([-3.0, 0.0, 7.0])
    wide = plain(nn.functional.pixel_unshuffle(x_t, 2), time)
    torch.testing.assert_close(folded(x_t, time), nn.functional.pixel_shuffle(wide, 2))
    with pytest.raises(ValueError, match="multiples of 2"):
        folded(torch.randn(1, 1, 7, 8), time[:1])


@pytest.mark.parametrize("patch", [1, 2])
def test_gates_weigh_each_feature_at_its_own_pixel(patch: int) -> None:
    fourier = (1, 3)
    network = UNet(
        UNetConfig(
            in_channels=2, outputs=2, channels=(8,), patch=patch, fourier=fourier, gates=True
        )
    ).eval()
    x_t, time = torch.randn(2, 2, 4, 6), torch.tensor([3.0, 500.0])
    weights = torch.randn(5, 2, 2)  # [1 + K, outputs, C]: a constant weight for every feature
    with torch.no_grad():
        # Zero at first, the last convolution now gives its bias alone; pixel_shuffle reads the
        # patch's pixels from neighbouring channels.
        network.conv_out.bias.copy_(weights.flatten().repeat_interleave(patch**2))
    features = with_fourier(x_t, fourier).unflatten(1, (5, 1, 2))
    features[:, 0] = 1.0
    expected = (weights[..., None, None] * features).sum(1).flatten(1, 2)
    torch.testing.assert_close(network(x_t, time), expected)


def test_gates_need_features() -> None:
    with pytest.raises(ValidationError, match="name some"):
        UNetConfig(gates=True)
