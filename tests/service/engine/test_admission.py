"""The jobs that are there: what is left of all is what is left of each."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from diffusion.model import DiffusionModel
from diffusion.process import GaussianConfig
from diffusion.samplers import DDIM
from diffusion.space import DataSpace
from service.engine import SampleJob
from service.engine.admission import Backlog
from service.engine.queue import RequestQueue
from service.engine.scheduling.batch import Lane, Load
from service.engine.scheduling.latency import Throughput
from service.settings import Settings
from tests.service.engine.conftest import mixture

SPACE = DataSpace(kind="vector", shape=(2,))
MODEL = DiffusionModel(GaussianConfig(T=16).build(), mixture(), SPACE, "x_0", "moment")


def job(model: str, rows: int) -> SampleJob:
    return SampleJob(model, rows, 7, DDIM(steps=10).plan(MODEL))


@given(
    asked=st.lists(st.tuples(st.sampled_from("gh"), st.integers(1, 3)), max_size=8),
    starts=st.sets(st.integers(0, 7)),
    ends=st.sets(st.integers(0, 7)),
)
def test_it_holds_what_is_left_of_each(
    asked: list[tuple[str, int]], starts: set[int], ends: set[int]
) -> None:
    throughput = {Lane(name): Throughput() for name in "gh"}
    door, backlog = RequestQueue(throughput, Settings()), Backlog()
    for model, rows in asked:
        door.accept(job(model, rows))
    taken = door.poll(wait=False)
    assert taken is not None
    records = taken[0]
    for record in records:
        backlog.add(record)
    for i, record in enumerate(records):
        if i in starts:
            backlog.start(record)
            record.ticket.done = 5
    left = [record for i, record in enumerate(records) if i not in ends]
    for record in records:
        if record not in left:
            backlog.remove(record, record.job.cost - record.ticket.done)
            backlog.pending -= record.ticket.done
    assert len(backlog) == len(left)
    assert backlog.pending == sum(record.job.cost for record in left)
    assert backlog.held == sum(record.size for record in left)
    found: Counter[tuple[str, Load]] = Counter()
    for model, loads in backlog.loads().items():
        for load, number in loads:
            found[model, load] += number
    assert found == Counter((record.job.lane, record.left) for record in left)


def test_equal_jobs_that_wait_are_one_kind() -> None:
    door = RequestQueue({Lane("g"): Throughput()}, Settings())
    for _ in range(100):
        door.accept(job("g", 2))
    taken = door.poll(wait=False)
    assert taken is not None
    backlog = Backlog()
    for record in taken[0]:
        backlog.add(record)
    assert backlog.loads() == {Lane("g"): [(job("g", 2).shape.load, 100)]}
