"""docs/operate.md has every setting, metric and limit, as the code has them."""

from pathlib import Path

import pytest

from service import errors as problems
from service.errors import Problem
from service.reference import with_tables
from service.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "operate.md").read_text(encoding="utf-8")


def part(heading: str) -> list[str]:
    """The rows of the first table below a heading, without its head."""
    lines = PAGE.split(f"\n## {heading}\n")[1].split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
    return lines[start : lines.index("", start)]


def test_the_tables_of_settings_and_metrics_are_current() -> None:
    assert with_tables(PAGE) == PAGE, "python -m service.reference docs/operate.md"


def test_every_setting_and_metric_has_a_row() -> None:
    names = {row.split("`")[1] for row in part("Settings")}
    assert names == {f"NONEQ_{name.upper()}" for name in Settings.model_fields}
    assert {row.split("`")[1] for row in part("Watching")} >= {
        "noneq_requests_total",
        "noneq_system_evaluations_total",
    }


def test_a_changed_row_is_written_anew() -> None:
    old = PAGE.replace("| `NONEQ_PORT` | `8000` |", "| `NONEQ_PORT` | `80` |")
    assert old != PAGE
    assert with_tables(old) == PAGE


@pytest.mark.parametrize(
    "problem",
    [p for p in vars(problems).values() if isinstance(p, type) and "slug" in vars(p) and p.refusal],
    ids=lambda problem: problem.slug,
)
def test_every_refusal_is_among_the_limits_with_its_status(problem: type[Problem]) -> None:
    rows = [row for row in part("Limits") if f"| `{problem.slug}` |" in row]
    assert len(rows) == 1
    assert f"| {problem.status} |" in rows[0]
