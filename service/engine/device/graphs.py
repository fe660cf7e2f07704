"""CUDA graphs of a chain's step: gather, network, update, noise and write back in one launch.

A graph replays the same kernels on the same memory, so each has a fixed number of rows, and tensors
that stay where they are; rows that a batch does not need work on a spare slot. The recorder is an
argument, so that a CPU can run the same code: there it returns the function itself. Every size is
compared with the ordinary step before it is used.
"""

import logging
from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.samplers import Ancestral, Update, begin
from service.engine.device.chains import ChainBatch, Chains
from service.engine.device.frames import FrameRecorder
from service.engine.device.network import nothing_told, something_seen
from service.engine.faults import describe

_log = logging.getLogger(__name__)

Play = Callable[[], None]
Record = Callable[[Play], Play]

_WARM_UP = 3  # calls before recording, in which libraries choose and prepare their kernels
_TOLERANCE = 1e-3  # of x_0hat's size, for another kernel may sum in another order


@final
class ChainGraph:
    """One step of up to `size` chains.

    Args:
        model: the model, on its device.
        state: of its chains.
        size: rows that it always has.
        observed: whether something was seen of one of them.
    """

    def __init__(self, model: DiffusionModel, state: Chains, size: int, observed: bool) -> None:
        self._model, self._state = model, state
        whole = torch.zeros(3, size, dtype=torch.int64, device=model.device)
        self._slots, self._seed, self._row = whole.unbind()
        self._slots.fill_(state.spare)
        # Only networks that give the kernel itself have steps that draw from it.
        own = torch.zeros(size, dtype=torch.bool, device=model.device)
        self._own = own if model.prediction == "perturbation" else None
        t, s = torch.ones_like(self._row), torch.zeros_like(self._row)
        table = torch.zeros(size, 6, dtype=torch.float64, device=model.device)
        update = Update(t, s, table, False if self._own is None else self._own)
        self._rows = ChainBatch(self._slots, self._seed, self._row, update, observed)
        self._play: Play = self.play

    def play(self) -> None:
        """The step, of whatever the tensors hold now."""
        self._state.step(self._model, self._rows)

    def record(self, record: Record) -> None:
        """From now on `run` plays what `record` made of `play`."""
        self._play = record(self.play)

    def run(self, rows: ChainBatch, recorder: FrameRecorder | None = None) -> None:
        """The batch's steps in turn; the recorder takes what it wants between them.

        Each step writes the state, so where one raises, the state of before the batch is put back.
        """
        state, slots = self._state, rows.slots
        before = state.x[slots], state.previous[slots], state.finite[slots]
        try:
            self._run(rows, recorder)
        except Exception:
            state.x[slots], state.previous[slots], state.finite[slots] = before
            raise

    def _run(self, rows: ChainBatch, recorder: FrameRecorder | None) -> None:
        n, update, own, steps = len(rows.slots), self._rows.update, self._own, rows.update
        self._slots[:n], self._seed[:n], self._row[:n] = rows.slots, rows.seed, rows.row
        self._slots[n:] = self._state.spare  # its step is the one that was there before
        if own is not None:
            own[:n] = steps.own
        columns = steps.t, steps.s, steps.table
        if steps.t.ndim == 1:
            columns = steps.t[None], steps.s[None], steps.table[None]
        for made, (t, s, table) in enumerate(zip(*columns, strict=True), 1):
            update.t[:n], update.s[:n], update.table[:n] = t, s, table
            self._play()
            if recorder is not None and recorder.wants(made):
                recorder(made, self._state.x[rows.slots], self._state.previous[rows.slots])


@final
class ChainGraphs:
    """Graphs of sizes up to the batch size, in powers of two, with and without observations.

    Args:
        model: the model, on its device.
        state: of its chains.
        batch_size: most rows of a batch.
        record: what each is recorded with.

    Attributes:
        failed: sizes that are not used, and why.
    """

    def __init__(
        self, model: DiffusionModel, state: Chains, batch_size: int, record: Record
    ) -> None:
        self.failed: dict[int, str] = {}
        self._graphs: dict[tuple[int, bool], ChainGraph] = {}
        state.observe()  # it must stay where it was recorded
        self._sizes = sorted(_sizes(batch_size))
        # The largest first: smaller ones reuse its memory.
        for size in reversed(self._sizes):
            found: dict[tuple[int, bool], ChainGraph] = {}
            try:
                for observed in (False, True):
                    graph = found[size, observed] = ChainGraph(model, state, size, observed)
                    graph.record(record)
                    _try(model, state, graph, size, observed)
                self._graphs |= found
            except Exception as error:
                if model.device.type == "cuda":
                    torch.cuda.synchronize(model.device)  # raises where the device itself is lost
                self.failed[size] = describe(error)
                _log.warning("%d rows run without a recording: %s", size, describe(error))

    def find(self, rows: int, observed: bool) -> ChainGraph | None:
        """The graph for `rows` rows; None where they are too many, or theirs failed."""
        size = next((size for size in self._sizes if size >= rows), None)
        return None if size is None else self._graphs.get((size, observed))


def _sizes(batch_size: int) -> Iterator[int]:
    size = 1
    while size < batch_size:
        yield size
        size *= 2
    yield batch_size


def _try(
    model: DiffusionModel, state: Chains, graph: ChainGraph, size: int, observed: bool
) -> None:
    """Raise RuntimeError where a recorded step differs from the ordinary one by more than rounding.

    It uses the state's first slots, which no chain has yet, and leaves them as new.
    """
    rows = max(1, size - 1)  # so that padding is tried too
    row = torch.arange(rows, device=model.device)
    x = begin(model, counter_noise(0, row, model.T + 1), None, rows)
    one = Ancestral().plan(model).at(0, model.device)
    t, s, table = one.t.expand(rows), one.s.expand(rows), one.table.expand(rows, -1)
    batch = ChainBatch(row, row, row, Update(t, s, table, one.own), observed)
    nothing = nothing_told(model, rows)
    seen = something_seen(model, rows) if observed else nothing
    found: list[tuple[Tensor, Tensor]] = []
    for recorded in (False, True):
        state.write(row, x, seen)
        if recorded:
            graph.run(batch)
        else:
            state.step(model, batch)
        found.append((state.x[row], state.previous[row]))
    state.write(row, torch.zeros_like(x), nothing)
    (x_s, x_0), (its_x_s, its_x_0) = found
    off = float((its_x_0 - x_0).abs().max() / x_0.abs().max().clamp_min(1.0))
    # A bit near its threshold may fall to the other side.
    moved = float(((its_x_s - x_s).abs() > _TOLERANCE * x_s.abs().clamp_min(1.0)).float().mean())
    if not (off <= _TOLERANCE and moved <= 0.01):
        raise RuntimeError(
            f"its estimates are off by {off:.2g} of their size, {moved:.2%} of its elements moved"
        )


def graph_recorder(device: torch.device) -> Record:
    """Records as CUDA graphs, which share their memory: only one runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(play: Play) -> Play:
        # Kernels are chosen, and libraries' workspaces made, before anything is recorded.
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                play()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: metrics, answers.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            play()
        return graph.replay

    return record
