"""diffusers' pipelines: the same network, the same process, the same trajectories."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.checkpoint import Provenance
from diffusion.model import DiffusionModel
from diffusion.noise import DrawnNoise
from diffusion.samplers import DDIM, Ancestral, advance
from diffusion.schedule import CosineSchedule, LinearSchedule
from tests.training.pipelines import UNETS, Peer, T, ddim, ddpm, saved, unet
from training.convert import read
from training.convert.found import Found

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peer's imports and its saving, not ours


def built(folder: Path) -> tuple[DiffusionModel, Found]:
    found = read(folder, flags={})
    return found.build("some-model", Provenance(data="elsewhere"))[0], found


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest value."""
    assert wanted.std() > 1e-3
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_the_network_is_the_same(name: str, tmp_path: Path) -> None:
    theirs = unet(name)
    model, _ = built(saved(tmp_path, theirs, ddpm()))
    x_t, t = torch.randn(4, *model.event), torch.tensor([1, 2, 300, 1000])
    wanted = theirs(x_t, t - 1).sample
    assert relative(model.network(x_t, (t - 1).float()), wanted) < 1e-5
    # Time matters, or the comparison above would not see it.
    assert relative(theirs(x_t, t * 0).sample, wanted) > 1e-3


SCHEDULES: list[dict[str, Any]] = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"trained_betas": [0.01, 0.1, 0.2, 0.4]},
    *(
        {"beta_schedule": schedule, "rescale_betas_zero_snr": True, "prediction_type": kind}
        for schedule, kind in (
            ("linear", "v_prediction"),
            ("scaled_linear", "sample"),
            ("squaredcos_cap_v2", "v_prediction"),
            ("sigmoid", "v_prediction"),
        )
    ),
]


@pytest.mark.parametrize("changes", SCHEDULES, ids=str)
def test_the_process_is_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = ddpm(**changes)
    model, found = built(saved(tmp_path, unet("tiny"), theirs))
    assert len(theirs.betas) == model.T
    torch.testing.assert_close(
        model.process.alpha_bar[1:].float(), theirs.alphas_cumprod, rtol=2e-5, atol=1e-7
    )
    assert (float(model.process.alpha_bar[-1]) == 0) == ("rescale_betas_zero_snr" in changes)
    if len(changes) == 1 and changes.get("beta_schedule") == "linear":
        assert found.schedule == LinearSchedule(first=1e-4, last=0.3)
    if changes == {"beta_schedule": "squaredcos_cap_v2"}:
        assert found.schedule == CosineSchedule()


def noises(model: DiffusionModel, rows: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(rows, *model.event, generator=generator) for _ in range(count)]


def ours(
    model: DiffusionModel, x: Tensor, sampler: Ancestral | DDIM, draws: list[Tensor], *, clip: bool
) -> list[Tensor]:
    """x_s after each step, with the last one's noise left out as diffusers does."""
    plan, path, previous = sampler.plan(model), [], torch.zeros_like(x)
    for i in range(len(plan)):
        update = plan.at(i, x.device)
        prediction = model.predict(x, update.t.expand(len(x)), clip)
        last = bool((update.s == 0).all())
        noise = DrawnNoise(torch.zeros_like(x) if last else draws[i])
        x = advance(prediction, x, previous, update, noise, None)
        previous = prediction.x_0
        path.append(x)
    return path


def theirs(
    net: Peer, scheduler: Peer, x: Tensor, draws: list[Tensor], **step: object
) -> list[Tensor]:
    """The same by diffusers' scheduler, which is given the noise that it would draw."""
    path = []
    for i, t in enumerate(scheduler.timesteps):
        with pytest.MonkeyPatch.context() as patch:
            module = __import__(scheduler.__class__.__module__, fromlist=["randn_tensor"])
            patch.setattr(module, "randn_tensor", lambda *_, i=i, **__: draws[i])
            x = scheduler.step(net(x, t).sample, t, x, **step).prev_sample
        path.append(x)
    return path


WAYS: list[dict[str, Any]] = [
    {"variance_type": "fixed_small"},
    {"variance_type": "fixed_small_log", "beta_schedule": "squaredcos_cap_v2"},
    {"variance_type": "fixed_large", "beta_schedule": "scaled_linear"},
    {"variance_type": "fixed_large", "clip_sample": False, "beta_end": 0.05},
    {"variance_type": "learned_range"},
    {"variance_type": "learned_range", "prediction_type": "v_prediction"},
    {"prediction_type": "sample", "beta_schedule": "sigmoid"},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
]


@pytest.mark.parametrize("changes", WAYS, ids=str)
@torch.no_grad()
def test_ddpm_walks_the_same_way(changes: dict[str, Any], tmp_path: Path) -> None:
    scheduler = ddpm(**changes)
    outputs = 2 if changes.get("variance_type") == "learned_range" else 1
    net = unet("tiny", out_channels=3 * outputs)
    model, _ = built(saved(tmp_path, net, scheduler))
    scheduler.set_timesteps(T)
    x, *draws = noises(model, 2, T + 1)
    wanted = theirs(net, scheduler, x, draws)
    found = ours(model, x, Ancestral(), draws, clip=scheduler.config.clip_sample)
    assert len(found) == len(wanted) == T
    assert max(map(relative, found, wanted)) < 1e-4


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("steps", "eta"), [(T, 0.0), (4, 0.0), (4, 0.7)])
@torch.no_grad()
def test_ddim_walks_the_same_way(
    kind: str, steps: int, eta: float, clip: bool, tmp_path: Path
) -> None:
    scheduler = ddim(prediction_type=kind, clip_sample=clip)
    net = unet("tiny")
    model, _ = built(saved(tmp_path, net, scheduler))
    scheduler.set_timesteps(steps)
    x, *draws = noises(model, 2, T + 1)
    # Where x_0hat is clipped, ours works eps out from it anew, which is this option of theirs.
    wanted = theirs(net, scheduler, x, draws, eta=eta, use_clipped_model_output=True)
    found = ours(model, x, DDIM(steps=steps, eta=eta), draws, clip=clip)
    assert len(found) == len(wanted) == steps
    assert max(map(relative, found, wanted)) < 1e-4
