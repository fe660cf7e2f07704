"""What every test stands on: fixed threads and seeds, no operator's settings, GPU tests marked."""

import contextlib
import os

# Before torch is imported: one thread a process (tests run side by side), repeatable GPU products.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A setting of the operator's shell must not change a test. Where the data sets lie is no setting.
for _name in [name for name in os.environ if name.startswith("NONEQ_") and name != "NONEQ_DATA"]:
    del os.environ[_name]

import pytest
import torch

with contextlib.suppress(ImportError):
    import hypothesis

    hypothesis.settings.register_profile("noneq", derandomize=True, deadline=None, database=None)
    hypothesis.settings.load_profile("noneq")


def pytest_addoption(parser: pytest.Parser) -> None:
    """A machine that is faster or slower than this one, as far as the engine can tell."""
    parser.addoption(
        "--engine-speed",
        type=float,
        default=1.0,
        help="the engine takes its network calls to be this many times as fast as they are, so "
        "that a batch advances as many times the steps; no test may depend on it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Full float32 precision and deterministic kernels, on any device."""
    speed = config.getoption("--engine-speed")
    if speed != 1.0:
        _speed_up(speed)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def _speed_up(speed: float) -> None:
    from service.engine import engine
    from service.engine.device.transfer import BatchTimer
    from service.engine.scheduling.latency import Throughput

    class Quick(Throughput):  # of chains and terms
        def seconds(self, rows: float, *, terms: bool = False) -> float:
            return super().seconds(rows, terms=terms) / speed

    measured = BatchTimer.seconds  # of particle systems
    BatchTimer.seconds = lambda *given: measured(*given) / speed  # type: ignore[method-assign]
    engine.Throughput = Quick  # type: ignore[misc]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device, and say so."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason=f"no CUDA device (torch {torch.__version__} sees none)")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Each test draws the same numbers whatever ran before it."""
    torch.manual_seed(0)
