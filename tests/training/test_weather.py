"""New York's weather: as it was read, with its gaps, and weeks apart."""

import math

import pytest
import torch
from torch import Tensor

from training.data.weather import WARMEST, WeatherConfig, days, hours, records


def test_every_reading_is_a_row_with_its_gaps_and_the_one_wrong_wind() -> None:
    names, rows = hours()
    assert rows.shape == (26_115, 12)
    gaps = dict(zip(names, rows.isnan().sum(0).tolist(), strict=True))
    assert gaps["pressure"] == 2729
    assert gaps["wind_gust"] == 20_778
    assert gaps["temp"] == 1
    assert gaps["day"] == gaps["origin"] == 0
    wind = rows[:, names.index("wind_speed")]
    assert int((wind > 100).sum()) == 1
    assert float(wind.nan_to_num().max()) == pytest.approx(1048.36, abs=0.01)


@pytest.mark.parametrize("rows", ["hours", "days"])
def test_no_week_is_in_two_splits_and_all_rows_are_in_one(rows: str) -> None:
    dataset = WeatherConfig.model_validate({"rows": rows}).load()
    parts = dataset.train, dataset.valid, dataset.test
    weeks = [set(((_day(rows, part) - 1) // 7).tolist()) for part in parts]
    assert len(set.union(*weeks)) == sum(map(len, weeks)) == 52
    assert [len(each) for each in weeks] == [37, 5, 10]
    whole = hours() if rows == "hours" else days()
    assert sum(map(len, (dataset.train, dataset.valid, dataset.test))) == len(whole[1])
    assert dataset.groups is not None
    assert set(dataset.groups[: len(dataset.train)].tolist()) == weeks[0]


def _day(kind: str, rows: Tensor) -> Tensor:
    """The day of the year, from where the year is in a row of a day."""
    if kind == "hours":
        return rows[:, 1]
    turn = torch.atan2(-rows[:, 2], rows[:, 1]) / (2 * math.pi) * 365
    return (WARMEST + turn - 1).round().remainder(365) + 1


@pytest.mark.parametrize("rows", ["hours", "days"])
def test_nothing_is_fitted_to_the_wrong_wind(rows: str) -> None:
    dataset = WeatherConfig.model_validate({"rows": rows}).load()
    for column, values in zip(dataset.space.columns, dataset.train.T, strict=True):
        if column.name.startswith("wind_speed"):
            assert float(values.nan_to_num().max()) < 60
            assert column.spread[1] < 10  # type: ignore[union-attr]


@pytest.mark.parametrize("rows", ["hours", "days"])
def test_values_fit_their_columns_and_come_back_from_model_units(rows: str) -> None:
    dataset = WeatherConfig.model_validate({"rows": rows}).load()
    for part in (dataset.train, dataset.valid, dataset.test):
        dataset.space.check(part)
        back = dataset.space.to_data(dataset.space.to_model(part[:500]))
        seen = ~part[:500].isnan()
        torch.testing.assert_close(back[seen], part[:500][seen], atol=1e-3, rtol=0)


def test_a_day_is_the_24_readings_of_its_hours() -> None:
    names, rows = days()
    line = next(
        r
        for r in records()
        if (r["origin"], r["month"], r["day"], r["hour"]) == ("JFK", "7", "4", "15")
    )
    day = rows[(rows[:, 0] == 1) & (rows[:, 1] == 185)][0]
    assert float(day[names.index("temp_15")]) == float(line["temp"])
    assert float(day[names.index("wind_speed_15")]) == float(line["wind_speed"])
