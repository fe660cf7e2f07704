"""Traces: the spans of a request, from a real exporter in memory, and the log's ids."""

import itertools
import json
import logging
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.engine.timeline import MOST, BatchLog, BatchSpan
from service.logs import FIELDS, JsonFormatter
from service.settings import Settings
from tests.service.http.caller import Caller, connect, until

if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
    pytest.skip("opentelemetry is not installed", allow_module_level=True)

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from service.api.tracing import SpanTracing

pytestmark = pytest.mark.anyio

ASKED: dict[str, Any] = {"model": "gaussian-mixture", "num_samples": 3, "sampler": {"steps": 50}}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-2] + "00"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
async def app(single: Path, exporter: InMemorySpanExporter) -> AsyncIterator[FastAPI]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = Settings(
        models=single, device="cpu", batch_size=8, otlp_endpoint="http://localhost:1"
    )
    app = create_app(settings, tracing=SpanTracing(provider))
    async with app.router.lifespan_context(app):
        await until(lambda: app.state.backend.state() is None)
        yield app


@pytest.fixture
async def client(app: FastAPI, exporter: InMemorySpanExporter) -> AsyncIterator[httpx.AsyncClient]:
    exporter.clear()
    async with connect(app) as found:
        yield found


def by_name(exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def assert_within(inner: ReadableSpan, outer: ReadableSpan, slack: int = 2_000_000) -> None:
    """In time, to two milliseconds: the batch's clock is read by another thread."""
    assert inner.parent is not None
    assert outer.context is not None
    assert inner.parent.span_id == outer.context.span_id
    assert outer.start_time - slack <= inner.start_time <= inner.end_time  # type: ignore[operator]
    assert inner.end_time <= outer.end_time + slack  # type: ignore[operator]


async def test_the_tree_of_a_request(
    client: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    response = await client.post("/sample", json=ASKED, headers={"traceparent": PARENT})
    assert response.status_code == 200
    spans = by_name(exporter)
    (root,) = spans["POST /sample"]
    assert root.context is not None
    assert root.parent is not None
    assert f"{root.parent.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{root.parent.span_id:016x}" == PARENT.split("-")[2]
    ids = f"{root.context.trace_id:032x}-{root.context.span_id:016x}"
    assert response.headers["traceparent"] == f"00-{ids}-01"
    assert root.kind.name == "SERVER"
    told = dict(root.attributes or {})
    assert told["http.route"] == "/sample"
    assert told["http.response.status_code"] == 200
    assert told["noneq.outcome"] == "ok"
    assert told["noneq.model"] == "gaussian-mixture"
    assert told["noneq.network_evaluations"] == 150
    assert told["noneq.request_id"] == response.headers["x-request-id"]
    stages = [spans[name] for name in ("decode", "queue", "compute", "encode")]
    assert [len(stage) for stage in stages] == [1, 1, 1, 1]
    for (stage,) in stages:
        assert_within(stage, root)
    ends = [(stage.start_time, stage.end_time) for (stage,) in stages]
    assert ends == sorted(ends)
    (compute,) = spans["compute"]
    batches = spans["batch"]
    for batch in batches:
        assert_within(batch, compute)
    made = [dict(batch.attributes or {}) for batch in batches]
    assert sum(one["noneq.network_evaluations"] for one in made) == 150  # type: ignore[misc]
    assert sum(one["noneq.batches"] for one in made) >= 1  # type: ignore[misc]


async def test_a_stream_has_the_same_tree(
    app: FastAPI, client: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    response = await client.post("/sample", json=ASKED, headers={"accept": "text/event-stream"})
    assert "event: result" in response.text
    spans = by_name(exporter)
    (root,) = spans["POST /sample"]
    assert root.parent is None
    assert {"decode", "queue", "compute", "encode", "batch"} <= set(spans)
    assert response.headers["traceparent"].split("-")[1] == f"{root.context.trace_id:032x}"  # type: ignore[union-attr]
    exporter.clear()
    caller = Caller(app, {**ASKED, "num_samples": 2000}, "text/event-stream")
    await caller.next("progress")
    await caller.leave()
    (root,) = by_name(exporter)["POST /sample"]
    assert (root.attributes or {})["noneq.outcome"] == "client-left"
    assert "encode" not in by_name(exporter)


async def test_a_refusal_says_why_and_a_probe_has_no_trace(
    client: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    await client.post("/sample", json={"model": "nothing"})
    (root,) = exporter.get_finished_spans()
    assert root.name == "POST /sample"
    assert (root.attributes or {})["noneq.outcome"] == "unknown-model"
    assert root.status.status_code == StatusCode.UNSET  # the caller's mistake
    exporter.clear()
    await client.get("/health/live")
    assert not exporter.get_finished_spans()
    await client.get("/nowhere/at/all")
    (root,) = exporter.get_finished_spans()
    assert root.name == "GET other"


async def test_callers_that_do_not_sample_are_not_traced(
    client: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    response = await client.post("/sample", json=ASKED, headers={"traceparent": UNSAMPLED})
    assert response.status_code == 200
    assert not exporter.get_finished_spans()
    assert response.headers["traceparent"].startswith(PARENT[:36])
    assert response.headers["traceparent"].endswith("-00")


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What the service logs, as JSON."""
    found: list[dict[str, Any]] = []
    formatter = JsonFormatter()

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(formatter.format(record)))

    handler, logger = Kept(), logging.getLogger("service")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_a_request_has_a_line_with_the_same_ids(
    client: httpx.AsyncClient, lines: list[dict[str, Any]]
) -> None:
    headers = {"traceparent": PARENT, "x-request-id": "mine"}
    response = await client.post("/sample", json=ASKED, headers=headers)
    await client.get("/health/live")
    (line,) = lines
    assert line["logger"] == "service.request"
    assert line["message"] == "POST /sample 200"
    assert line["request_id"] == "mine"
    assert line["trace_id"] == PARENT.split("-")[1]
    assert line["span_id"] == response.headers["traceparent"].split("-")[2]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/sample", 200)
    assert (line["outcome"], line["model"]) == ("ok", "gaussian-mixture")
    assert line["network_evaluations"] == 150
    assert line["seconds"] >= line["compute_seconds"] > 0


async def test_what_a_request_logs_on_the_way_has_its_ids(
    client: httpx.AsyncClient, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a worker thread too; a failure with its stack, on one line."""

    def fail(*_: object) -> bytes:
        logging.getLogger("service.deep").warning("about to fail")
        raise RuntimeError("no memory\nfor this")

    monkeypatch.setattr("service.handlers.base.to_json", fail)
    response = await client.post("/sample", json=ASKED, headers={"x-request-id": "mine"})
    assert response.status_code == 500
    assert [line["request_id"] for line in lines] == ["mine"] * 3
    deep, failure, request = lines
    assert deep["message"] == "about to fail"
    assert "RuntimeError: no memory" in failure["exception"]
    assert (request["status"], request["outcome"]) == (500, "internal-error")


def test_json_lines_are_whole() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, 'a "b" \n %s', (Path("c"),), None)
    setattr(record, FIELDS, {"path": Path("d"), "n": 3})
    text = JsonFormatter().format(record)
    assert "\n" not in text
    found = json.loads(text)
    assert (found["message"], found["path"], found["n"]) == ('a "b" \n c', "d", 3)
    assert found["time"].endswith("Z")
    assert "request_id" not in found


@pytest.mark.parametrize("count", [1, MOST - 1, MOST, 5 * MOST + 3, 10_000])
def test_a_log_of_batches_covers_all_in_few_entries(count: int) -> None:
    log = BatchLog()
    for i in range(count):
        log.add(BatchSpan(float(i), i + 0.5, 1, 2, i % 7))
    spans = log.spans
    assert len(spans) <= MOST
    assert len(spans) >= min(count, MOST // 2 - 1)
    assert sum(span.batches for span in spans) == count
    assert sum(span.evaluations for span in spans) == 2 * count
    assert spans[0].begun == 0
    assert spans[-1].ended == count - 0.5
    assert all(a.ended < b.begun for a, b in itertools.pairwise(spans))
    assert max(span.rows for span in spans) == min(count - 1, 6)
