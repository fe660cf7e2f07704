"""Which replica gets a request, and how many replicas there are: without a cluster."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

pytest.importorskip("ray", reason="Ray is an extra: pip install 'noneq[ray]'")

from deploy.ray import scaling
from deploy.ray.app import Arguments
from deploy.ray.router import OwedWork


@pytest.mark.parametrize(
    ("owed", "busy", "replicas"),
    [(0, 0, 0), (1.9, 0.4, 1), (2.1, 0.4, 2), (0.5, 1.0, 2), (0.1, 3.2, 4), (40, 8, 20)],
)
def test_replicas_follow_the_work_that_waits_and_the_time_that_is_used(
    owed: float, busy: float, replicas: int
) -> None:
    assert scaling.desired(owed, busy) == replicas


def test_the_policy_adds_up_what_replicas_report() -> None:
    metrics = {"owed": {"a": 3.0, "b": 4.0}, "busy": {"a": 1.0, "b": 1.0}}
    context: Any = SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=2)
    assert scaling.policy(context) == (4, {})
    nothing: Any = SimpleNamespace(aggregated_metrics={}, target_num_replicas=2)
    assert scaling.policy(nothing) == (2, {})


def router() -> OwedWork:
    found = object.__new__(OwedWork)  # without Ray's own, which needs a cluster
    found.initialize_state()
    return found


def replica(name: str, **report: float) -> Any:  # noqa: ANN401
    return SimpleNamespace(replica_id=name, routing_stats=report)


@pytest.mark.anyio
async def test_the_replica_that_owes_the_least_comes_first() -> None:
    now, ours = time.time(), router()
    replicas = [
        replica("long", owed=9.0, usual=0.1, time=now),
        replica("short", owed=1.0, usual=0.1, time=now),
        replica("stale", owed=5.0, usual=0.1, time=now - 4.8),  # which has worked since
    ]
    ranks = await ours.choose_replicas(replicas)
    assert [[one.replica_id for one in rank] for rank in ranks] == [["stale"], ["short"], ["long"]]


@pytest.mark.anyio
async def test_what_was_sent_since_the_report_counts() -> None:
    now, ours = time.time(), router()
    replicas = [replica(name, owed=0.0, usual=0.5, time=now) for name in "abc"]
    ours._replicas = {one.replica_id: one for one in replicas}
    counts = dict.fromkeys("abc", 0)
    for _ in range(30):
        chosen = (await ours.choose_replicas(replicas))[0][0].replica_id
        counts[chosen] += 1
        asked: Any = SimpleNamespace(kwargs={})
        ours.on_request_routed(asked, chosen, None)  # type: ignore[arg-type]
    assert set(counts.values()) == {10}
    # A part of a request says what it is, and does not go to its sender; a report has it all.
    heavy: Any = SimpleNamespace(kwargs={"owed": 50.0})
    ours.on_request_routed(heavy, "a", None)  # type: ignore[arg-type]
    assert ours.estimate(replicas[0], now) > 50
    part: Any = SimpleNamespace(kwargs={"owed": 1.0, "sender": "b"})
    ranks = await ours.choose_replicas(replicas, part)
    assert [one.replica_id for (one,) in ranks] == ["c", "a", "b"]
    assert ours.estimate(replica("a", owed=1.0, usual=0.5, time=time.time() + 1), now) == 1.0


def test_arguments_are_checked() -> None:
    with pytest.raises(ValidationError, match="min_replicas=4 exceeds max_replicas=2"):
        Arguments(min_replicas=4, max_replicas=2)
    with pytest.raises(ValidationError, match="extra"):
        Arguments.model_validate({"replica": 2})
