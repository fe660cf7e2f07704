"""A fit begins where an artefact ended, or says why its weights have no meaning there."""

from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import load as load_artefact
from diffusion.checkpoint import save
from diffusion.likelihood.bound import bound
from diffusion.networks import (
    CorrectedConfig,
    GaussianMixtureConfig,
    MLPConfig,
    MultiscaleConfig,
    Network,
    NetworkConfig,
    UNetConfig,
    build,
)
from diffusion.observation import Observation
from diffusion.process import GaussianConfig
from diffusion.samplers import sample
from diffusion.space import DataSpace
from tests.diffusion.artefacts import described
from training.config import ConfigError, FitConfig, load
from training.export.export import from_checkpoint
from training.fit.initial import take_weights
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def fitted(config: FitConfig, folder: Path) -> Path:
    """An artefact of its own fit."""
    assert Fit(config, RunOptions(out=folder), ALONE).run()
    model, metadata, _ = from_checkpoint(folder, ALONE.device)
    path = folder / "model.safetensors"
    save(path, model, metadata)
    return path


@pytest.fixture
def artefact(small: FitConfig, tmp_path: Path) -> Path:
    return fitted(small, tmp_path / "first")


def fit_on(small: FitConfig, artefact: Path | str, tmp_path: Path, **other: object) -> Fit:
    keys = {**small.model_dump(), "initial": str(artefact), **other}
    return Fit(FitConfig.model_validate(keys), RunOptions(out=tmp_path / "second"), ALONE)


def test_it_starts_from_the_weights_and_moves(
    small: FitConfig, artefact: Path, tmp_path: Path
) -> None:
    first = load_artefact(artefact)[0].network.state_dict()
    fit = fit_on(small, artefact, tmp_path, objective={"bound": 0.0, "simple": 1.0}, steps=3)
    for network in (fit.network, fit.averaged.network):
        assert all(torch.equal(first[key], x) for key, x in network.state_dict().items())
    assert fit.run()
    assert not all(torch.equal(first[key], x) for key, x in fit.network.state_dict().items())


def test_what_does_not_fit_is_refused(small: FitConfig, artefact: Path, tmp_path: Path) -> None:
    wider = {**small.network.model_dump(), "width": 24}
    with pytest.raises(ConfigError, match=r"\(width: 16 there, 24 here\): weights fit only where"):
        fit_on(small, artefact, tmp_path, network=wider)
    with pytest.raises(ConfigError, match="has prediction v, this configuration eps"):
        fit_on(small, artefact, tmp_path, prediction="eps")
    longer = {**small.process.model_dump(), "T": 20}
    with pytest.raises(ConfigError, match="keep the process"):
        fit_on(small, artefact, tmp_path, process=longer)
    with pytest.raises(ConfigError, match="there is no models/nothing"):
        fit_on(small, "nothing", tmp_path)


def test_a_clock_of_log_snr_takes_another_schedule(small_file: Path, tmp_path: Path) -> None:
    text = small_file.read_text().replace("embedding = 8", 'embedding = 8\nclock = "log_snr"')
    small_file.write_text(text)
    clocked = load(str(small_file))
    path = fitted(clocked, tmp_path / "first")
    # Equal steps of log SNR between the same ends: step t of 10 has the noise of 2 t - 1 of 19.
    finer = {**clocked.process.model_dump(), "T": 19}
    fit = fit_on(clocked, path, tmp_path, process=finer)
    model = load_artefact(path)[0]
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    t = torch.arange(1, 11)
    one, two = model.predict(x, t), fit.averaged.predict(x, 2 * t - 1)
    torch.testing.assert_close(one.x_0, two.x_0, rtol=1e-4, atol=1e-5)


TOLD = {"observations": {"share": 0.5, "families": [{"kind": "exact"}, {"kind": "noisy"}]}}


def conditional(small: FitConfig) -> dict[str, object]:
    return {"network": {**small.network.model_dump(), "conditional": True}, **TOLD}


def test_an_extended_model_is_the_old_one_at_what_is_told_and_x_t_as_one(
    small: FitConfig, artefact: Path, tmp_path: Path
) -> None:
    old = load_artefact(artefact)[0]
    fit = fit_on(small, artefact, tmp_path, **conditional(small))
    new = fit.averaged
    assert new.conditional
    rows = new.space.to_model(fit.dataset.test[:16])
    k = [bound(model, rows, seed=1, convention="density").bound for model in (old, new)]
    torch.testing.assert_close(k[0], k[1], rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(sample(old, 8, seed=2), sample(new, 8, seed=2))
    seen = Observation.of_reals(rows, torch.rand(rows.shape) < 0.5, 0.3).to_network()
    x_t, t = (
        torch.randn(16, 2, generator=torch.Generator().manual_seed(0)),
        torch.arange(16) % 10 + 1,
    )
    fused = new.output.fused(x_t, t, seen.telling)
    assert fused is not None  # it predicts v
    x, pair = fused
    wanted = old.clip(old.output.read(old.network(x, old.times(t).condition), x, t, pair).at(x_t))
    torch.testing.assert_close(new.predict(x_t, t, observation=seen).x_0, wanted.x_0)
    fit.run()  # and what it is told can be learned
    moved = fit.network.state_dict()["first.weight"][:, 2:]
    assert bool(moved.abs().sum(0).all())


def test_a_fit_goes_on_after_the_steps_that_told_nothing(
    small: FitConfig, artefact: Path, tmp_path: Path
) -> None:
    told = {"observations": {**TOLD["observations"], "after": 12}}
    fit = fit_on(small, artefact, tmp_path, steps=15, **conditional(small) | told)
    assert fit.step == 12
    assert fit.seconds == load_artefact(artefact)[1].training.seconds
    assert fit.run()
    again = fit_on(small, artefact, tmp_path, steps=15, **conditional(small) | told)
    assert again.step == 15
    with pytest.raises(ValueError, match=r"told in the first 12 steps \(after\) of 12"):
        fit_on(small, artefact, tmp_path, **conditional(small) | told)


def test_before_that_step_nothing_is_told(small: FitConfig, tmp_path: Path) -> None:
    told = {"observations": {**TOLD["observations"], "after": 12}}
    keys = {**small.model_dump(), **conditional(small), **told, "steps": 13}
    fit = Fit(FitConfig.model_validate(keys), RunOptions(out=tmp_path / "one", stop_at=12), ALONE)
    before = fit.network.state_dict()["first.weight"][:, 2:].clone()
    fit.run()
    assert torch.equal(fit.network.state_dict()["first.weight"][:, 2:], before)
    fit = Fit(fit.config, RunOptions(out=tmp_path / "one"), ALONE)
    fit.run()
    assert not torch.equal(fit.network.state_dict()["first.weight"][:, 2:], before)


CONV = {"shape": (2, 8, 8), "channels": (4,), "dense": (6,), "bumps": 3, "zero_out": False}
EXTENDED = [
    (MLPConfig(features=3, outputs=2, width=8, depth=2, zero_out=False), (3,)),
    (MultiscaleConfig.model_validate({**CONV, "scales": 2, "T": 10}), (2, 8, 8)),
    (
        UNetConfig(
            in_channels=2,
            channels=(8, 16),
            blocks=1,
            patch=2,
            fourier=(2, 3),
            zero_out=False,
            clock="log_snr",
        ),
        (2, 8, 8),
    ),
]


@pytest.mark.parametrize(("config", "event"), EXTENDED, ids=lambda x: getattr(x, "kind", ""))
def test_the_weights_of_further_inputs_start_from_zero(
    config: NetworkConfig, event: tuple[int, ...], small: FitConfig, tmp_path: Path
) -> None:
    old, new = taken(config, event, small, tmp_path)
    x = torch.randn(4, 4 * event[0], *event[1:], generator=torch.Generator().manual_seed(1))
    time = torch.arange(4.0)
    with torch.no_grad():
        was = old(x[:, : event[0]], time)
        assert float(was.abs().max()) > 0.1
        for what in (x, x[:, : event[0]]):
            torch.testing.assert_close(new(what, time), was)


def test_a_correction_is_extended_and_its_base_kept(small: FitConfig, tmp_path: Path) -> None:
    correction = MLPConfig(features=3, width=8, depth=2, zero_out=False, clock="log_snr")
    base = GaussianMixtureConfig(components=2, features=3)
    old, new = taken(CorrectedConfig(base=base, correction=correction), (3,), small, tmp_path)
    x, time = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.arange(4.0)
    torch.testing.assert_close(new(x, time), old(x, time))
    seen = torch.cat((torch.randn(4, 3), torch.rand(4, 6)), 1)
    assert not torch.equal(new(torch.cat((x, seen), 1), time), old(x, time))  # the base is told


def test_further_inputs_must_be_further_columns(
    small: FitConfig, artefact: Path, tmp_path: Path
) -> None:
    fit = fit_on(small, artefact, tmp_path, **conditional(small))
    other = torch.nn.Module()
    other.first = torch.nn.Linear(8, 17)  # one output more
    with pytest.raises(ConfigError, match=r"further columns.*first\.bias, first\.weight.*are not"):
        take_weights(other, fit.config)


def taken(
    config: NetworkConfig, event: tuple[int, ...], small: FitConfig, tmp_path: Path
) -> tuple[Network, Network]:
    """A network, and one that is also told, with its weights."""
    space = DataSpace(kind="vector" if len(event) == 1 else "image", shape=event)
    process = GaussianConfig.model_validate({**small.process.model_dump(), "T": 10})
    read = getattr(config, "reads", None)
    prediction = "x_0" if read else "v"
    variance = "lower" if getattr(config, "outputs", 1) == 1 else "moment"
    metadata = described(config, process, space, prediction, variance)
    model = metadata.build()
    path = tmp_path / "model.safetensors"
    save(path, model, metadata)
    keys = {"network": config.conditioned(), "process": process, "prediction": prediction, **TOLD}
    into = build(config.conditioned())
    dumped = {**small.model_dump(), "initial": str(path), **keys}
    assert take_weights(into, FitConfig.model_validate(dumped)) is not None
    assert isinstance(model.network, Network)
    return model.network.eval(), into.eval()
