"""The best weights are kept, a fit stops when the held-out bound has turned, and may go on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training import densities
from training import user_data as own
from training.config import FitConfig
from training.export.export import from_checkpoint
from training.fit import checkpoint as state
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks
from training.fit.weights import Best

ALONE = Ranks(0, 1, torch.device("cpu"))


def fit(config: FitConfig, out: Path, **options: object) -> Fit:
    return Fit(config, replace(RunOptions(out=out, save_every=5), **options), ALONE)  # type: ignore[arg-type]


def stopping(small: FitConfig, **changes: object) -> FitConfig:
    keys = small.model_dump() | {"stopping": {"patience": 2}, "steps": 40} | changes
    keys["watch"]["every"] = 4
    return FitConfig.model_validate(keys)


def scripted(running: Fit, monkeypatch: pytest.MonkeyPatch, bounds: list[float]) -> list[int]:
    """Let the looks of a fit see these bounds, one after another; returns the steps looked at."""
    looked: list[int] = []

    def look(self: object, step: int) -> Tensor:  # noqa: ARG001
        looked.append(step)
        return torch.full((3,), bounds[step // 4], dtype=torch.float64)

    monkeypatch.setattr("training.fit.monitor.Watch.look", look)
    monkeypatch.setattr("training.fit.monitor.Watch.draw", lambda *_: None)
    del running
    return looked


def test_a_gain_within_its_error_is_none() -> None:
    network = nn.Linear(1, 1)
    best = Best(network, patience=2)
    best.show(0, torch.tensor([0.0, 0.0, 0.0, 0.0]))
    nn.init.ones_(network.weight)
    best.show(1, torch.tensor([4.0, -3.0, 2.0, -2.0]))  # mean 0.25, error 1.65
    best.show(2, torch.tensor([torch.nan, 1.0, 1.0, 1.0]))
    assert best.looks is not None
    assert (best.looks.step, best.turned) == (0, True)
    assert not torch.equal(best.weights["weight"], network.weight)
    best.show(3, torch.tensor([0.2, 0.1, 0.2, 0.1]))
    assert (best.looks.step, best.turned) == (3, False)
    assert torch.equal(best.weights["weight"], network.weight)


def test_the_first_weights_are_left_for_a_gain_of_two_errors() -> None:
    best = Best(nn.Linear(1, 1), patience=9)
    gain = torch.tensor([3.0, 1.0, -1.0, 3.0, 1.0, 2.0])  # mean 1.5, error 0.62
    best.show(0, torch.zeros(6))
    best.show(1, 0.5 * gain - 0.1)  # 2.1 errors
    best.show(2, gain - 0.5)  # 1.1 errors more
    assert best.looks is not None
    assert (best.looks.step, best.looks.since) == (2, 0)
    best = Best(nn.Linear(1, 1), patience=9)
    best.show(0, torch.zeros(6))
    best.show(1, gain - 0.5)  # 1.6 errors
    assert best.looks is not None
    assert (best.looks.step, best.looks.since) == (0, 1)


def test_the_best_weights_are_kept_and_exported(
    small: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stopping(small)
    running = fit(config, tmp_path)
    looked = scripted(running, monkeypatch, [0.0, 1.0, 2.0, 1.9, 1.5, 9.0])
    kept: dict[str, Tensor] = {}
    advance = running._advance

    def at_eight() -> tuple[float, dict[str, float]]:
        if running.step == 8:
            kept.update({k: v.clone() for k, v in running.averaged.network.state_dict().items()})
        return advance()

    monkeypatch.setattr(running, "_advance", at_eight)
    assert running.run()
    assert looked == [0, 4, 8, 12, 16]  # two looks without a better one
    found = state.read_state(tmp_path)
    assert found.best is not None
    assert (found.step, found.best.step, found.best.since) == (16, 8, 2)
    model, metadata, _ = from_checkpoint(tmp_path, torch.device("cpu"))
    assert (metadata.training.steps, metadata.training.kept) == (16, 8)
    exported = model.network.state_dict()
    assert all(torch.equal(exported[name], kept[name]) for name in kept)
    assert fit(config, tmp_path).run()  # over is over
    assert state.read_state(tmp_path).step == 16


def test_killed_and_resumed_stops_where_the_whole_one_does(
    small: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, bounds = stopping(small), [0.0, 1.0, 0.5, 2.0, 1.9, 1.5]
    scripted(fit(config, tmp_path / "whole"), monkeypatch, bounds)
    assert fit(config, tmp_path / "whole").run()
    for stop in (7, 10, 13):
        assert not fit(config, tmp_path / "broken", stop_at=stop).run()
    assert fit(config, tmp_path / "broken").run()
    one, two = (state.read_tensors(tmp_path / run) for run in ("whole", "broken"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert state.read_state(tmp_path / "broken").best == state.read_state(tmp_path / "whole").best


def test_a_fit_is_extended_past_its_end(
    small: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = stopping(small, steps=8), stopping(small, steps=20)
    looked = scripted(fit(short, tmp_path), monkeypatch, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert fit(short, tmp_path).run()
    assert fit(long, tmp_path).run()
    assert looked == [0, 4, 8, 12, 16, 20]
    assert fit(short, tmp_path).run()  # a fit longer than asked for is done
    assert state.read_state(tmp_path).step == 20
    # One that has turned goes on as well, if it is asked for more than before.
    looked = scripted(fit(long, tmp_path), monkeypatch, [9.0] * 6 + [5.0] * 9)
    assert fit(stopping(small, steps=40), tmp_path).run()
    assert looked == [24, 28]
    assert fit(stopping(small, steps=50), tmp_path).run()
    assert looked == [24, 28, 32, 36]


def test_a_schedule_that_is_learned_does_not_stop(small: FitConfig) -> None:
    with pytest.raises(ValueError, match=r"leave out \[stopping\]"):
        stopping(small, schedule={"learn": "log_snr"})


@pytest.mark.parametrize("kept", [0, 4])
def test_a_simple_density_is_compared_on_rows_it_has_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """It has seen `train` alone, and learns from `valid` where the network added nothing."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(80, 2)))
    keys, dataset = own.configure(tmp_path / "rows.npy", None, steps=8)
    keys["watch"] = keys["watch"] | {"every": 4}
    config = FitConfig.model_validate(keys)
    running = Fit(config, RunOptions(tmp_path / "run"), ALONE, dataset)
    scripted(running, monkeypatch, [0.0, 1.0 if kept else -1.0, -0.5])
    assert running.run()
    assert running.best is not None
    assert running.best.looks is not None
    assert running.best.looks.step == kept
    seen = densities.known(dataset) if kept == 0 else dataset.train
    wanted = densities.base(config, dataset.space, seen)
    assert wanted is not None
    exported = state.averaged_tensors(state.read_tensors(tmp_path / "run"))
    for name, value in wanted.state_dict().items():
        assert torch.equal(exported[f"base.{name}"], value)
    correction = {name: exported[name] for name in exported if "correction.readout" in name}
    assert all(bool(value.any()) == (kept > 0) for value in correction.values())
