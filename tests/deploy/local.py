"""A local Ray with the service on it, for tests: two replicas of one core each."""

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from service.settings import Settings

REPLICAS = 2
ROOT = Path(__file__).parents[2]


@contextmanager
def start(num_cpus: int) -> Iterator[None]:
    """Start a local Ray; skip the test where the machine is too busy for Ray's own limits."""
    import ray

    try:
        ray.init(
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            logging_level="warning",
            num_cpus=num_cpus,
        )
    except Exception as error:
        ray.shutdown()
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("Ray did not start within the half minute that it allows itself")
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def on_ray(folder: Path, **settings: object) -> Iterator[str]:
    """The URL of the service on a Ray that was started for it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    values = Settings.model_validate({"models": folder, "device": "cpu", **settings})
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "RAY_USAGE_STATS_ENABLED": "0",
        # On a busy machine Ray would take a slow proxy for a dead one.
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    }
    with mock.patch.dict(os.environ, environment), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        from ray import serve

        from deploy.ray.app import Arguments, build

        with start(num_cpus=REPLICAS):
            try:
                serve.start(http_options={"host": "127.0.0.1", "port": port})
                serve.run(build(Arguments(replicas=REPLICAS, cpus=1), values), name="noneq")
                yield f"http://127.0.0.1:{port}"
            finally:
                serve.shutdown()
