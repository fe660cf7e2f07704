"""The Grafana dashboard shows what the service exposes, and all of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "noneq.json"
NAME = re.compile(r"\bnoneq_[a-z_]+")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def exposed() -> dict[str, list[str]]:
    """Every series' name, with its labels; whatever has labels is shown once."""
    metrics = Metrics()
    metrics.requests.labels("/sample", "ok").inc()
    metrics.refused.labels("queue-full").inc()
    metrics.batch("mnist", 3, 0.1, systems=True)
    metrics.pad("mnist", 1)
    metrics.watch_memory("cpu", lambda: 1, 2)
    metrics.models({"mnist": 1})
    metrics.key_requests.labels("alice", "ok").inc()
    metrics.key_evaluations.labels("alice").inc()
    metrics.budgets({"alice": 1.0})
    metrics.watch_jobs(lambda _: 1, lambda: 1, 1, 1)
    metrics.jobs_ended.labels("ok").inc()
    metrics.queue_seconds.observe(1.0)
    metrics.compute_seconds.observe(1.0)
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        sample.name: list(sample.labels)
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]


def test_every_metric_it_names_is_exposed_with_its_labels(dashboard: dict[str, Any]) -> None:
    names = exposed()
    for expression in expressions(dashboard):
        used = NAME.findall(expression)
        assert used, expression
        assert set(used) <= set(names), expression
        for label in re.findall(r"by \(([a-z, ]+)\)", expression):
            assert label in names[used[0]], expression


def test_every_metric_exposed_is_shown(dashboard: dict[str, Any]) -> None:
    shown = set(NAME.findall(" ".join(expressions(dashboard))))
    histograms = {name.removesuffix("_bucket") for name in shown if name.endswith("_bucket")}
    parts = {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    assert set(exposed()) <= shown | parts


def test_it_can_be_imported(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert set(NAME.findall(variables["instance"]["definition"])) <= set(exposed())
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identities)) == len(identities)
    for panel in panels(dashboard):
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source["uid"] == "${datasource}" for source in sources)
        assert panel["title"]
        assert panel["description"]
    cells = {
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    }
    areas = [panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in dashboard["panels"]]
    assert len(cells) == sum(areas)  # no panel lies over another


@pytest.mark.parametrize("name", ["noneq_queue_seconds", "noneq_compute_seconds"])
def test_medians_and_tails_are_shown(dashboard: dict[str, Any], name: str) -> None:
    found = [text for text in expressions(dashboard) if f"{name}_bucket" in text]
    assert any("histogram_quantile(0.5," in text for text in found)
    assert any("histogram_quantile(0.99," in text for text in found)
