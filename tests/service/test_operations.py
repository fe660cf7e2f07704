"""docs/operations.md has every setting, metric and limit, as the code has them."""

from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram
from pydantic import SecretStr

from service import errors as problems
from service.errors import Problem
from service.metrics import Metrics
from service.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


def setting(name: str) -> str:
    """Its row."""
    field = Settings.model_fields[name]
    default = field.default
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    shown = str(default).lower() if isinstance(default, bool) else default
    shown = "" if default in (None, "") else f"`{shown}`"
    return f"| `NONEQ_{name.upper()}` | {shown} | {field.description} |"


def metric(one: Counter | Gauge | Histogram) -> str:
    """Its row."""
    name = f"{one._name}_total" if isinstance(one, Counter) else one._name
    labels = ", ".join(f"`{label}`" for label in one._labelnames)
    return f"| `{name}` | {one._type} | {labels} | {one._documentation} |"


def part(heading: str) -> list[str]:
    """The rows of the first table below a heading, without its head."""
    lines = PAGE.split(f"\n## {heading}\n")[1].split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
    return lines[start : lines.index("", start)]


def test_the_settings_are_those_of_the_code() -> None:
    assert part("Settings") == [setting(name) for name in Settings.model_fields]


def test_the_metrics_are_those_of_the_code() -> None:
    found = [
        one for one in vars(Metrics()).values() if isinstance(one, Counter | Gauge | Histogram)
    ]
    assert part("Watching") == [metric(one) for one in found]


@pytest.mark.parametrize(
    "problem",
    [p for p in vars(problems).values() if isinstance(p, type) and "slug" in vars(p) and p.refusal],
    ids=lambda problem: problem.slug,
)
def test_every_refusal_is_among_the_limits_with_its_status(problem: type[Problem]) -> None:
    rows = [row for row in part("Limits") if f"| `{problem.slug}` |" in row]
    assert len(rows) == 1
    assert f"| {problem.status} |" in rows[0]
