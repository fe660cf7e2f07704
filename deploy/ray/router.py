"""Routes each request to a replica that owes little work, in seconds: the best of a few at random.

    estimate = max(0, owed - age of the report) + what this router has sent since the report

The best of all would be everybody's choice until the next report (`benchmarks.replicas`).

Replicas report what they owe every `request_routing_stats_period_s`; in between, requests that this
router has sent count with what a request of theirs usually is, or with what it is said to be. Ray
copies this module into its proxies by value, so it imports nothing of noneq.
"""

import random
import time
from collections import defaultdict, deque

from ray.serve._private.replica_result import ReplicaResult
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

PERIOD = 0.25  # seconds between a replica's reports
_SOME = 4  # replicas that are compared


class OwedWork(RequestRouter):  # type: ignore[misc]
    """A Ray Serve request router. A report is {"owed", "usual", "time"}, all in seconds.

    `owed` is the work accepted and not yet done, `usual` that of an average request, and `time`
    when this was so.
    """

    def initialize_state(self) -> None:
        """Begin with nothing sent."""
        self._sent: defaultdict[ReplicaID, deque[tuple[float, float]]] = defaultdict(deque)

    def estimate(self, replica: RunningReplica, now: float) -> float:
        """Seconds of work that a replica owes at `now`, as far as this router knows."""
        report = replica.routing_stats or {"owed": 0.0, "usual": 0.0, "time": 0.0}
        sent = self._sent[replica.replica_id]
        while sent and sent[0][0] < report["time"]:
            sent.popleft()
        # Before the first report there is nothing else to tell replicas apart by than the number.
        since = sum(max(seconds, 1e-6) for _, seconds in sent)
        return float(max(0.0, report["owed"] - max(0.0, now - report["time"])) + since)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Rank a few replicas by what they owe, in random order where they owe the same.

        A replica that sends a part of a request does one itself, so it comes last.
        """
        now = time.time()
        sender = None if pending_request is None else pending_request.kwargs.get("sender")
        some = random.sample(candidate_replicas, min(_SOME, len(candidate_replicas)))
        some.sort(key=lambda one: (one.replica_id == sender, self.estimate(one, now)))
        return [[replica] for replica in some]

    def on_request_routed(
        self,
        pending_request: PendingRequest,
        replica_id: ReplicaID,
        result: ReplicaResult,  # noqa: ARG002
    ) -> None:
        """Count what has been sent."""
        replica = self.curr_replicas.get(replica_id)
        usual = (replica.routing_stats or {}).get("usual", 0.0) if replica is not None else 0.0
        seconds = pending_request.kwargs.get("owed", usual)
        self._sent[replica_id].append((time.time(), seconds))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica."""
        super().on_replica_actor_died(replica_id)
        self._sent.pop(replica_id, None)


def config() -> RequestRouterConfig:
    """The deployment's `request_router_config`."""
    return RequestRouterConfig(request_router_class=OwedWork, request_routing_stats_period_s=PERIOD)
