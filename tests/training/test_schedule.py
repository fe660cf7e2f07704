"""A learned schedule: always a table, its gradient exact, its fit resumed, its artefact whole."""

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.checkpoint import load
from diffusion.likelihood.bound import bound, prior_part, terms
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture, RBFConfig, build
from diffusion.noise import Stream, counter_noise
from diffusion.process import GaussianProcess
from diffusion.schedule import (
    GeometricSchedule,
    LinearSchedule,
    LogSnrSchedule,
    alpha_bar,
    check_beta,
)
from diffusion.space import Convention, DataSpace
from training import data
from training.config import FitConfig, ScheduleConfig
from training.export.export import export
from training.fit import checkpoint as state
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks
from training.fit.schedule import LearnedSchedule

DATA = functools.cache(data.load)
ALONE = Ranks(0, 1, torch.device("cpu"))
T = 6
START = GeometricSchedule(first=1e-3, last=0.6).beta(T)
BETA = ScheduleConfig(learn="beta")
FIXED = ScheduleConfig(learn="log_snr")
ENDS = ScheduleConfig(learn="log_snr", ends="learned")
KINDS = [BETA, FIXED, ENDS]


@pytest.mark.parametrize("config", KINDS, ids=repr)
def test_it_begins_with_the_table_it_is_given(config: ScheduleConfig) -> None:
    for start in (START, LogSnrSchedule(first=14.0, last=-8.0).beta(300)):
        found = LearnedSchedule(config, start).beta()
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, start, rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("config", KINDS, ids=repr)
def test_any_parameters_make_a_table(config: ScheduleConfig, size: float) -> None:
    schedule = LearnedSchedule(config, START)
    with torch.no_grad():
        schedule.theta.add_(size * torch.randn(T - 1))
    beta = schedule.beta().detach()
    check_beta(beta)
    assert bool((alpha_bar(beta).diff() < 0).all())
    torch.testing.assert_close(beta[1], START[1])  # beta_1 is not theta's
    if config == FIXED:
        torch.testing.assert_close(alpha_bar(beta)[-1], alpha_bar(START)[-1])


def losses(model: DiffusionModel, x_0: Tensor, convention: Convention) -> Tensor:
    """K summed over the rows, with noise that is a function of the row and t alone."""
    total = prior_part(model, x_0, convention)
    rows = torch.arange(len(x_0))
    for t in range(1, T + 1):
        noise = counter_noise(0, rows, t, Stream.TRAINING)
        total = total + terms(model, x_0, torch.full_like(rows, t), noise, convention, clip=False)
    return total.sum()


@pytest.mark.parametrize("convention", ["paper", "density"])
@pytest.mark.parametrize("config", KINDS, ids=repr)
def test_gradients_are_those_of_finite_differences(
    config: ScheduleConfig, convention: Convention
) -> None:
    """Of K with the noise frozen, in float64: every part of it, to six digits."""
    network = build(RBFConfig(features=2, outputs=2, units=5, T=T, zero_out=False)).double()
    space = DataSpace(kind="vector", shape=(2,))
    model = DiffusionModel(GaussianProcess(START), network, space, "perturbation", None)
    schedule, x_0 = LearnedSchedule(config, START), torch.randn(3, 2, dtype=torch.float64)

    def value() -> Tensor:
        model.process.take(schedule.beta())
        return losses(model, x_0, convention)

    value().backward()
    for parameter in schedule.parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None
        for i, slope in enumerate(parameter.grad.tolist()):
            with torch.no_grad():
                h = 1e-5
                parameter[i] += h
                above = float(value())
                parameter[i] -= 2 * h
                below = float(value())
                parameter[i] += h
            assert (above - below) / (2 * h) == pytest.approx(slope, rel=1e-5, abs=1e-5)


def learning(small: FitConfig, config: ScheduleConfig, **changes: object) -> FitConfig:
    return FitConfig.model_validate(
        {**small.model_dump(), "schedule": config.model_dump(), **changes}
    )


def fit(config: FitConfig, out: Path, stop_at: int | None = None) -> Fit:
    options = RunOptions(out=out, save_every=5, stop_at=stop_at)
    return Fit(config, options, ALONE, DATA(config.data))


@pytest.mark.parametrize("config", [BETA, ENDS], ids=repr)
def test_a_resumed_fit_is_the_unbroken_one_and_its_artefact_holds_the_table(
    small: FitConfig, config: ScheduleConfig, tmp_path: Path
) -> None:
    wanted = learning(small, config)
    whole, broken = fit(wanted, tmp_path / "whole"), fit(wanted, tmp_path / "broken", 7)
    whole.run()
    broken.run()
    again = fit(wanted, tmp_path / "broken")
    again.run()
    one, two = (state.read_tensors(tmp_path / name) for name in ("whole", "broken"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)

    start = small.process.build().beta
    table = whole.averaged.process.beta
    assert not torch.allclose(table[2:], start[2:], rtol=1e-3)
    if config != ENDS:
        torch.testing.assert_close(table[1], start[1])

    path = export(
        str(tmp_path / "small.toml"),
        out=tmp_path / "whole",
        models=tmp_path / "models",
        device=torch.device("cpu"),
        measure=False,
    )
    model, metadata = load(path)
    assert metadata.process.schedule.kind == "table"
    assert torch.equal(model.process.beta, table)
    x_0 = whole.dataset.test[:8]
    found = bound(model, x_0, seed=0, convention="density").bound
    assert torch.equal(found, bound(whole.averaged, x_0, seed=0, convention="density").bound)


@pytest.mark.parametrize("config", KINDS, ids=repr)
def test_learning_raises_the_bound(config: ScheduleConfig) -> None:
    """Of a model that knows its data, from a schedule that spends its steps badly.

    On the frozen noise that it was learned on, and on other data and other noise.
    """
    means = torch.tensor([[1.1, -0.6], [-0.9, 0.7]], dtype=torch.float64)
    covariances = torch.tensor([[[0.01, 0.0], [0.0, 0.02]]] * 2, dtype=torch.float64)
    mixture = GaussianMixture.from_values(torch.tensor([0.4, 0.6]), means, covariances)
    start = LinearSchedule(first=1e-2, last=0.8).beta(T)
    space = DataSpace(kind="vector", shape=(2,))
    model = DiffusionModel(GaussianProcess(start), mixture, space, "x_0", "moment")
    schedule = LearnedSchedule(config, start)
    optimiser = torch.optim.Adam([p for p in schedule.parameters() if p.requires_grad], lr=0.1)
    rows = torch.arange(600)
    x_0 = mixture.sample(counter_noise(0, rows, 0, Stream.DATA)).float()

    def fresh() -> float:
        return float(bound(model, x_0[300:], seed=5, convention="density").bound.mean())

    before, frozen = fresh(), []
    for _ in range(30):
        optimiser.zero_grad()
        model.process.take(schedule.beta())
        loss = -losses(model, x_0[:300], "density")
        frozen.append(-float(loss.detach()) / 300)
        loss.backward()
        optimiser.step()
    model.process.take(schedule.beta().detach())
    if config != ENDS:
        torch.testing.assert_close(model.process.beta[1], start[1])
    assert frozen[-1] > frozen[0] + 0.03
    assert fresh() > before + 0.03  # data and noise are the same twice: their spread is not in it


def test_what_cannot_be_learned_is_refused(small: FitConfig) -> None:
    process = {"kind": "binomial", "T": 10}
    with pytest.raises(ValueError, match="bits have no gradient"):
        learning(small, BETA, process=process)
    with pytest.raises(ValueError, match=r"objective\.simple = 0"):
        learning(small, BETA, objective={"simple": 1.0})
    with pytest.raises(ValueError, match="beta_1 is fixed"):
        ScheduleConfig(learn="beta", ends="learned")
    with pytest.raises(ValueError, match="T = 1"):
        LearnedSchedule(BETA, torch.tensor([0.0, 0.5], dtype=torch.float64))
    with pytest.raises(ValueError, match="beta_T = 1"):
        LearnedSchedule(BETA, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
