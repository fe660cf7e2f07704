"""A local Ray with the service on it, for tests: two replicas of one core each."""

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

REPLICAS = 2
ROOT = Path(__file__).parents[2]


@contextmanager
def on_ray(folder: Path, **settings: object) -> Iterator[str]:
    """The URL of the service on a Ray that was started for it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    values = {"models": folder, "device": "cpu", **settings}
    environment = {f"NONEQ_{name.upper()}": str(value) for name, value in values.items()}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
    }
    with mock.patch.dict(os.environ, environment), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        import ray
        from ray import serve

        from deploy.ray.app import Arguments, app

        ray.init(
            num_cpus=REPLICAS,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            logging_level="warning",
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(app(Arguments(replicas=REPLICAS, cpus=1)), name="noneq")
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()
