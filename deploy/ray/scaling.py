"""How many replicas there should be.

    replicas = max(owed / TARGET,  busy replicas / BUSY),  rounded up

`owed` are the seconds of work that wait, over all replicas: with TARGET of them each, a request
waits about that long. `busy` is the share of its time that a replica computes: without it the
number would fall while the queue is short, though the replicas have all they can do. Ray copies
this module into its controller by value, so it imports nothing of noneq.
"""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

TARGET = 2.0  # seconds of work that a replica should owe at most
BUSY = 0.8  # share of its time that it should compute at most


def desired(owed: float, busy: float) -> int:
    """Return the number of replicas for `owed` seconds of work and `busy` busy replicas."""
    return max(math.ceil(owed / TARGET - 1e-9), math.ceil(busy / BUSY - 1e-9))


def policy(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """A Ray Serve autoscaling policy; Ray applies the bounds and delays of the configuration."""
    metrics = context.aggregated_metrics or {}
    totals = [sum((metrics.get(name) or {}).values()) for name in ("owed", "busy")]
    if not metrics:  # nothing has been reported yet
        return context.target_num_replicas, {}
    return desired(*totals), {}
