"""The service's Prometheus metrics, in a registry of its own.

fill of a batch = its rows / batch_size;    a request's life = queue_seconds + compute_seconds

Each app has one `Metrics`, and nothing is registered globally, so two apps in one process (tests)
do not share metrics.
"""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_FILL = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


class Metrics:
    """The app's metrics; every name begins with `noneq_`.

    `requests` and `refused` are counted around the routes (outcome: "ok", or a problem's slug),
    everything else by the engine. The `watch` methods set gauges that are read on each scrape.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._rows: dict[object, tuple[int, int]] = {}  # running and waiting, by engine
        self.requests = Counter(
            "noneq_requests_total",
            "Requests answered.",
            ("route", "outcome"),
            registry=registry,
        )
        self.refused = Counter(
            "noneq_refused_total",
            "Requests refused for a limit or the load, by cause: the problem's slug.",
            ("cause",),
            registry=registry,
        )
        self.rows_running = Gauge(
            "noneq_rows_running",
            "Rows (chains, examples, systems) that hold a slot.",
            registry=registry,
        )
        self.rows_waiting = Gauge(
            "noneq_rows_waiting", "Accepted rows that wait for a slot.", registry=registry
        )
        self.queue_seconds = Histogram(
            "noneq_queue_seconds",
            "From acceptance to the first network call of a request.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.compute_seconds = Histogram(
            "noneq_compute_seconds",
            "From the first network call of a request to its result.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_fill = Histogram(
            "noneq_batch_fill",
            "Rows of a batch over the batch size.",
            buckets=_FILL,
            registry=registry,
        )
        self.network_evaluations = Counter(
            "noneq_network_evaluations_total",
            "Rows put through a network, forward and backward.",
            ("model",),
            registry=registry,
        )
        self.system_evaluations = Counter(
            "noneq_system_evaluations_total",
            "Those of them by systems of particles, which have batches of their own. A backward "
            "pass counts as much as a forward one.",
            ("model",),
            registry=registry,
        )
        self.batches = Counter(
            "noneq_batches_total",
            "Batches that the engine ran: one network call, or several steps of the same chains.",
            ("model",),
            registry=registry,
        )
        self.padding_rows = Counter(
            "noneq_padding_rows_total",
            "Rows added to batches as padding, to reach a warmed batch size.",
            ("model",),
            registry=registry,
        )
        self.queue_cost = Gauge(
            "noneq_queue_cost", "Network evaluations accepted and not yet done.", registry=registry
        )
        self.queue_cost_limit = Gauge(
            "noneq_queue_cost_limit", "Limit of noneq_queue_cost; beyond it 503.", registry=registry
        )
        self.owed_seconds = Gauge(
            "noneq_owed_seconds",
            "Seconds of work that noneq_queue_cost is, in full batches at the measured rates; of "
            "several devices the mean.",
            registry=registry,
        )
        self.queue_bytes = Gauge(
            "noneq_queue_bytes",
            "Bytes of bodies being read and of accepted requests' data and answers.",
            registry=registry,
        )
        self.queue_bytes_limit = Gauge(
            "noneq_queue_bytes_limit",
            "Limit of noneq_queue_bytes; beyond it 503.",
            registry=registry,
        )
        self.jobs = Gauge(
            "noneq_jobs",
            "Stored jobs: waiting, running, done and failed.",
            ("state",),
            registry=registry,
        )
        self.jobs_limit = Gauge(
            "noneq_jobs_limit", "Limit of noneq_jobs in all; beyond it 503.", registry=registry
        )
        self.jobs_bytes = Gauge(
            "noneq_jobs_bytes",
            "Bytes of stored jobs, with what answers to come are expected to take.",
            registry=registry,
        )
        self.jobs_bytes_limit = Gauge(
            "noneq_jobs_bytes_limit",
            "Limit of noneq_jobs_bytes; beyond it 503.",
            registry=registry,
        )
        self.jobs_ended = Counter(
            "noneq_jobs_ended_total",
            "Stored jobs that ended: ok, or the problem's slug.",
            ("outcome",),
            registry=registry,
        )
        self.device_memory = Gauge(
            "noneq_device_memory_bytes",
            "Device memory that the service's tensors take; on a CPU, the process's resident set.",
            ("device",),
            registry=registry,
        )
        self.device_memory_limit = Gauge(
            "noneq_device_memory_limit_bytes",
            "Limit of noneq_device_memory_bytes beyond which no model is loaded.",
            ("device",),
            registry=registry,
        )
        self.model_weights = Gauge(
            "noneq_model_weight_bytes",
            "Device memory of a served model's weights.",
            ("model",),
            registry=registry,
        )
        self.loads = Counter(
            "noneq_model_loads_total",
            "Models loaded or unloaded while serving, by outcome: loaded, unchanged, failed, "
            "unloaded.",
            ("outcome",),
            registry=registry,
        )
        self.key_requests = Counter(
            "noneq_key_requests_total",
            "Requests answered, by the name of the API key's holder.",
            ("key", "outcome"),
            registry=registry,
        )
        self.key_evaluations = Counter(
            "noneq_key_evaluations_total",
            "Network evaluations of accepted requests, by the name of the API key's holder.",
            ("key",),
            registry=registry,
        )
        self.key_budget = Gauge(
            "noneq_key_budget",
            "Network evaluations a minute that a holder's key has.",
            ("key",),
            registry=registry,
        )
        for outcome in ("loaded", "unchanged", "failed", "unloaded"):
            self.loads.labels(outcome)

    def rows(self, running: int, waiting: int, engine: object = None) -> None:
        """Set an engine's current numbers of rows."""
        self._rows[engine] = running, waiting
        totals = [sum(numbers) for numbers in zip(*list(self._rows.values()), strict=True)]
        self.rows_running.set(totals[0])
        self.rows_waiting.set(totals[1])

    def batch(self, model: str, evaluations: int, fill: float, *, systems: bool = False) -> None:
        """Count a batch: its evaluations, and its fill (rows over the batch size)."""
        self.batches.labels(model).inc()
        if systems:
            self.system_evaluations.labels(model).inc(evaluations)
        self.network_evaluations.labels(model).inc(evaluations)
        self.batch_fill.observe(fill)

    def pad(self, model: str, rows: int) -> None:
        """Count rows that were added to a batch as padding."""
        self.padding_rows.labels(model).inc(rows)

    def serve(self, model: str) -> None:
        """Create a model's counters, so that they are exported as zero from the start."""
        counters = (
            self.batches,
            self.network_evaluations,
            self.system_evaluations,
            self.padding_rows,
        )
        for counter in counters:
            counter.labels(model)

    def watch_queue(self, owed: Callable[[], int], limit: int) -> None:
        """Read the queue's cost from `owed`; its limit is fixed."""
        self.queue_cost.set_function(owed)
        self.queue_cost_limit.set(limit)

    def watch_owed(self, seconds: Callable[[], float]) -> None:
        """Read the seconds of work that a device owes from `seconds`."""
        self.owed_seconds.set_function(seconds)

    def watch_room(self, held: Callable[[], int], limit: int) -> None:
        """Read the bytes of requests in progress from `held`; their limit is fixed."""
        self.queue_bytes.set_function(held)
        self.queue_bytes_limit.set(limit)

    def watch_jobs(
        self, count: Callable[[str], int], used: Callable[[], int], most: int, most_bytes: int
    ) -> None:
        """Read the number of stored jobs by state from `count`, their bytes from `used`."""
        for state in ("waiting", "running", "done", "failed"):
            self.jobs.labels(state).set_function(partial(count, state))
        self.jobs_bytes.set_function(used)
        self.jobs_limit.set(most)
        self.jobs_bytes_limit.set(most_bytes)

    def watch_memory(self, device: str, used: Callable[[], int], limit: int) -> None:
        """Read the device's memory, in bytes, from `used`; its limit is fixed."""
        self.device_memory.labels(device).set_function(used)
        self.device_memory_limit.labels(device).set(limit)

    def models(self, weights: Mapping[str, int]) -> None:
        """Set the bytes of the served models' weights, by name."""
        self.model_weights.clear()
        for name, size in weights.items():
            self.model_weights.labels(name).set(size)

    def budgets(self, per_minute: Mapping[str, float]) -> None:
        """Set the budgets of API keys, by their holders' names."""
        self.key_budget.clear()
        for name, budget in per_minute.items():
            self.key_budget.labels(name).set(budget)

    def render(self) -> bytes:
        """Render the metrics as text with the content type `CONTENT_TYPE`."""
        return generate_latest(self.registry)
