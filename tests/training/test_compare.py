"""Schedules are compared under equal conditions, and the table says which is best."""

import math
from pathlib import Path

import pytest
import torch

from training import config, data
from training.config import ConfigError
from training.evaluate.bound import evaluate
from training.fit.initial import build_model
from training.fit.parallel import Ranks
from training.study import schedules as compare

ALONE = Ranks(0, 1, torch.device("cpu"))


def test_only_the_schedule_differs() -> None:
    base = config.load("schedules").model_dump()
    for name in (*compare.FIXED, *compare.LEARNED):
        one = config.load("schedules", compare.overrides(config.load("schedules"), name))
        rest = {**one.model_dump(), "process": base["process"], "schedule": None}
        assert rest == base
        assert (one.schedule is not None) is (name in compare.LEARNED)
        assert base["process"]["T"] == one.process.T


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ideal losses of few draws."""
    monkeypatch.setattr(compare, "ROWS", 40)
    monkeypatch.setattr(compare, "GRID", {"levels": 30, "rows": 40})


@pytest.mark.usefixtures("few")
def test_a_measured_row_has_its_ideal_and_its_table(small_file: Path, tmp_path: Path) -> None:
    small_file.write_text(small_file.read_text().replace("steps = 12", "steps = 3"))
    base = config.load(str(small_file))
    dataset = data.load(base.data)
    row = compare.measure(base, "beta, learned from linear", dataset, tmp_path / "runs", ALONE)
    assert row is not None
    for convention in compare.CONVENTIONS:
        ideal, network = row.ideal[convention], row.network[convention]
        assert 0 < ideal.bits < network.bits + 5 * (ideal.error + network.error)
    assert len(row.beta) == 11
    assert row.beta[1] == pytest.approx(1e-3, rel=1e-6)

    best = compare.best(base, "the best of this beta_1", dataset)
    assert not best.network
    lines = compare.lines([row, best])
    assert lines[2].startswith("| the best of this beta_1 | ")
    assert lines[3].startswith("| beta, learned from linear | ")


def test_an_interrupted_comparison_has_no_rows(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare.Fit, "run", lambda _: False)
    assert compare.compare(str(small_file), tmp_path, ALONE) is None


def test_the_loss_of_a_network_is_what_it_lacks_of_the_datas_density(small_file: Path) -> None:
    """Mean log p(x_0) - K: K itself as `evaluate` has it, on the same data and noise."""
    base = config.load(str(small_file))
    dataset = data.load(base.data)
    model = build_model(base, dataset)
    found = compare.network_losses(model, dataset, base.evaluation)
    assert dataset.log_density is not None
    own = float(dataset.log_density(dataset.test[: base.evaluation.data]).mean())
    kinds = {"count": base.evaluation.data, "seed": base.evaluation.seed}
    for e in evaluate(model, dataset, compare.CONVENTIONS, **kinds):
        assert found[e.convention].bits == pytest.approx(own / math.log(2) - e.bits, abs=1e-4)


def test_other_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="not heartbeat"):
        compare.roll_of(config.load("heartbeat"))
