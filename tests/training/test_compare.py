"""Schedules are compared under equal conditions, and the table says which is best."""

from pathlib import Path

import pytest
import torch

from training import compare, config
from training.config import ConfigError
from training.parallel import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def test_only_the_schedule_differs() -> None:
    base = config.load("schedules").model_dump()
    for name in (*compare.FIXED, *compare.LEARNED):
        one = config.load("schedules", compare.overrides(config.load("schedules"), name))
        rest = {**one.model_dump(), "process": base["process"], "schedule": None}
        assert rest == base
        assert (one.schedule is not None) is (name in compare.LEARNED)
        assert base["process"]["T"] == one.process.T


def test_a_measured_row_has_its_ideal_and_its_table(small_file: Path, tmp_path: Path) -> None:
    small_file.write_text(small_file.read_text().replace("steps = 12", "steps = 3"))
    row = compare.measure(str(small_file), "learned beta", tmp_path / "runs", ALONE, strata=20)
    for convention in compare.CONVENTIONS:
        found = row[convention]
        slack = 5 * (found["standard_error"] + found["ideal_standard_error"])
        assert found["bits"] < found["ideal"] + slack
    assert row["density"]["ideal"] < -row["entropy"] + 5 * row["density"]["ideal_standard_error"]
    assert len(row["beta"]) == 11
    assert row["beta"][1] == pytest.approx(1e-4, rel=1e-6)

    better = {**row, "schedule": "better", "density": {**row["density"], "bits": 9.0}}
    lines = compare.markdown([row, better]).splitlines()
    assert lines[2].startswith("| better | 9.000 ± ")
    assert lines[3].startswith("| learned beta |")


def test_other_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not heartbeat"):
        compare.measure("heartbeat", "linear", tmp_path, ALONE)
