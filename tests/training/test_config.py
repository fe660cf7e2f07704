"""A configuration is checked as it is read, and what ships is right."""

import itertools
from pathlib import Path

import pytest

from training import classifier, config
from training.config import FOLDER, ConfigError
from training.export import oracle

NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_that_ships_is_valid(name: str) -> None:
    if oracle.is_oracle(name):
        oracle.build(oracle.load(name))
    elif classifier.is_classifier(name):
        assert classifier.load_config(name).name == name
    else:
        assert config.load(name).name == name


def test_the_classifier_of_mnist_has_its_process() -> None:
    digits, reader = config.load("mnist"), classifier.load_config("mnist-classifier")
    assert reader.process == digits.process


def test_an_unknown_key_is_an_error_that_names_it(small_file: Path) -> None:
    small_file.write_text(small_file.read_text() + "\n[extra]\nlearning_rat = 1\n")
    with pytest.raises(ConfigError, match=r"(?s)small\.toml.*extra"):
        config.load(str(small_file))


def test_an_unknown_key_inside_a_section_is_an_error(small_file: Path) -> None:
    small_file.write_text(small_file.read_text().replace("warmup = 3", "warm_up = 3"))
    with pytest.raises(ConfigError, match="warm_up"):
        config.load(str(small_file))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="heartbeat"):
        config.load("hartbeat")


def test_broken_toml_is_named(small_file: Path) -> None:
    small_file.write_text("title = ")
    with pytest.raises(ConfigError, match="no TOML"):
        config.load(str(small_file))


def test_an_objective_needs_a_weight() -> None:
    with pytest.raises(ValueError, match="both 0"):
        config.ObjectiveConfig(bound=0, simple=0)


def test_learning_rate_warms_up_and_decays_to_its_end(small_file: Path) -> None:
    fit = config.load(str(small_file))
    rates = [fit.optimiser.rate(step, fit.steps) for step in range(fit.steps + 1)]
    peak = fit.optimiser.lr
    assert rates[:3] == pytest.approx([peak / 3, 2 * peak / 3, peak])
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_a_longer_fit_goes_on_where_a_shorter_one_ended(small_file: Path) -> None:
    one = config.load(str(small_file))
    again = one.optimiser.model_copy(update={"restarts": (one.steps,)})
    two = one.model_copy(update={"steps": one.steps + 5, "optimiser": again})
    rates = [two.optimiser.rate(step, two.steps) for step in range(two.steps + 1)]
    assert rates[: one.steps] == [one.optimiser.rate(step, one.steps) for step in range(one.steps)]
    assert rates[one.steps] == pytest.approx(one.optimiser.lr / 2)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("restarts", [(100,), (300, 200), (200, 200)])
def test_restarts_ascend_past_the_warm_up(restarts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        config.OptimiserConfig(warmup=100, restarts=restarts)


def test_oracle_values_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    source = (FOLDER / "bit-patterns.toml").read_text()
    path = tmp_path / "odd.toml"
    path.write_text(source.replace("weights = [0.30, 0.25,", "weights = [0.55,"))
    with pytest.raises(ConfigError, match="odd"):
        oracle.build(oracle.load(str(path)))
