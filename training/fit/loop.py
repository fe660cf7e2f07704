"""Train a model: minimise -K (or the configured objective) with AdamW and average the weights.

    w_{n+1} = AdamW(w_n, grad loss(w_n; batch_n, t_n, noise_n))

Batch, t and noise are pure functions of (seed, n), so a resumed fit ends with the same weights as
an uninterrupted one, on the same machine with the same number of threads. SIGINT and SIGTERM end a
fit after the current step, with a checkpoint.
"""

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.families import leave_out, observe_some
from diffusion.likelihood.bound import prior_part
from diffusion.noise import Stream, counter_noise
from training import data
from training.config import FitConfig, completed
from training.data.dataset import stream_seed
from training.fit import checkpoint as state
from training.fit.batches import Batches, Steps
from training.fit.initial import build_model, refit_base, take_weights
from training.fit.monitor import Watch
from training.fit.objective import Objective
from training.fit.parallel import Ranks, signals
from training.fit.projection import project
from training.fit.schedule import Learning
from training.fit.weights import Average, Best
from training.provenance import commit, device_name, versions


class FitError(RuntimeError):
    """A fit cannot continue; the message says why and what to change."""


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that do not change the weights beyond rounding.

    Args:
        out: the run folder.
        restart: ignore an existing checkpoint.
        compile: torch.compile the network.
        save_every: steps between checkpoints.
        stop_at: end (with a checkpoint) after this step; None for the configuration's last.
    """

    out: Path
    restart: bool = False
    compile: bool = False
    save_every: int = 500
    stop_at: int | None = None


class Fit:
    """One fit, started afresh or resumed from the run folder's checkpoint.

    Args:
        config: the configuration.
        options: how to run it.
        ranks: this process's place among the ranks.
        dataset: the data; by default loaded as the configuration says.
    """

    def __init__(
        self,
        config: FitConfig,
        options: RunOptions,
        ranks: Ranks,
        dataset: data.Dataset | None = None,
    ) -> None:
        ranks.check(config.batch)
        self.config, self.options, self.ranks = config, options, ranks
        self.dataset = data.load(config.data) if dataset is None else dataset
        self.space = self.dataset.space
        self.rows = self.dataset.train.to(ranks.device)
        self.model = build_model(config, self.dataset)
        begun = not options.restart and state.checkpoint_path(options.out).exists()
        self.step, self.seconds, self.commit = 0, 0.0, commit()
        if config.initial is not None and not begun:
            extended = take_weights(self.model.network, config)
            if extended is not None and config.observations is not None:
                # The artefact has made the steps that tell nothing.
                self.step, self.seconds = config.observations.after, extended.seconds or 0.0
        self.model.to(ranks.device)
        if self.space.kind == "image":
            # torch.nn.Module.to accepts memory_format, but its type stubs do not.
            self.model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: nn.Module = self.model.network
        self.averaged = copy.deepcopy(self.model).eval()
        self.average = Average(self.network, self.averaged.network, config.average.decay)
        self.names: dict[Tensor, str] = {p: name for name, p in self.network.named_parameters()}
        self.parameters = list(self.network.parameters())
        groups: list[dict[str, Any]] = [{"params": self.parameters, "rate": 1.0}]
        self.learning: Learning | None = None
        if config.schedule is not None:
            decay = config.average.decay
            self.learning = Learning(config.schedule, decay, self.model, self.averaged)
            learned = dict(self.learning.parameters())
            self.names |= {p: name for name, p in learned.items()}
            groups.append({"params": list(learned.values()), "rate": config.schedule.rate})
        settings = config.optimiser
        self.optimiser = torch.optim.AdamW(
            groups,
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        convention = config.objective.convention or self.space.default_convention
        losses = config.objective
        self.objective = Objective(
            losses.bound, losses.simple, convention, losses.bias, losses.target
        )
        if config.observations is not None:
            for family in config.observations.families:
                family.check(self.space.shape)
        self.steps = Steps(self.model.T, config.objective.steps, config.seed)
        self.batches = Batches(len(self.rows), config.batch, config.seed)
        stopping = config.stopping
        self.best = Best(self.averaged.network, stopping.patience) if stopping else None
        if begun:
            self._resume()
        if options.compile:
            self.model.network = torch.compile(self.network)  # type: ignore[assignment]

    def run(self) -> bool:
        """Fit to the end and save; return False if a signal or `stop_at` ended it early."""
        if self.config.projection is not None:
            return self._project()
        last = min(self.config.steps, self.options.stop_at or self.config.steps)
        with signals() as caught, self._watch(last) as watch:
            if self.best is not None and self.best.looks is None:
                self._look(watch, last)
            while self.step < last and not self._turned():
                began = time.monotonic()
                nats, scalars = self._advance()
                self.step += 1
                self.seconds += time.monotonic() - began
                if watch is not None:
                    watch.step(self.step, nats, scalars)
                self._look(watch, last)
                stop = self.ranks.any(bool(caught))
                ended = self.step == last or self._turned()
                if self._turned() or self.step == self.config.steps:
                    self._refit_base()
                if stop or ended or self.step % self.options.save_every == 0:
                    self.save()
                if stop:
                    break
        return self.step >= self.config.steps or self._turned()

    def _turned(self) -> bool:
        """Whether the first rank, which measures the held-out bound, has seen it stop growing."""
        return self.best is not None and self.ranks.any(self.best.turned)

    def _look(self, watch: Watch | None, last: int) -> None:
        """Measure the averaged weights if it is time to, and keep them if they are the best."""
        step, config = self.step, self.config.watch
        due = step % config.every == 0
        if watch is None or not (due or step == last):
            return
        values = watch.look(step)
        # A run that stops early must not count this check: the full run would not make it.
        if self.best is not None and (due or step == self.config.steps):
            self.best.show(step, values)
        if step == last or step % (config.sheets or config.every) == 0:
            watch.draw(step)

    def _refit_base(self) -> None:
        """If the network improved nothing, refit the simple density to `valid` too.

        Until now it must not see these rows, to keep the comparison fair.
        """
        if self.best is None or self.best.looks is None or self.best.looks.step:
            return
        network = copy.deepcopy(self.averaged.network)
        network.load_state_dict(self.best.weights)
        refit_base(network, self.config, self.dataset)
        self.best.weights = network.state_dict()

    def save(self) -> None:
        """Write the checkpoint, from the first rank only."""
        if not self.ranks.first:
            return
        tensors = {
            **state.named("network", self.network.state_dict()),
            **state.named("average", self.averaged.network.state_dict()),
            **state.named("optimiser", state.optimiser_tensors(self.optimiser, self.names)),
            **(self.learning.tensors() if self.learning else {}),
            **(state.named("best", self.best.weights) if self.best else {}),
            "steps.history": self.steps.history,
            "steps.seen": self.steps.seen,
        }
        ranks, name = self.ranks, device_name(self.ranks.device)
        document = state.State(
            step=self.step,
            seconds=self.seconds,
            checksum=self.dataset.checksum,
            device=f"{ranks.world} x {name}" if ranks.world > 1 else name,
            commit=self.commit,
            versions=versions(),
            config=self.config.model_dump(mode="json"),
            best=self.best.looks if self.best else None,
        )
        state.save(self.options.out, document, tensors)

    def _advance(self) -> tuple[float, dict[str, float]]:
        """Do one optimiser step; return the batch's mean K estimate (nats) and scalars to plot."""
        config, ranks, step = self.config, self.ranks, self.step
        index = ranks.share(self.batches.at(step)).to(ranks.device)
        all_t, all_weight = self.steps.draw(step, config.batch)
        t, weight = ranks.share(all_t).to(ranks.device), ranks.share(all_weight).to(ranks.device)
        place = ranks.share(torch.arange(config.batch)).to(ranks.device)
        noise = counter_noise(config.seed, place, step, Stream.TRAINING)
        rows = self.rows[index]
        x_0, gaps = self.space.to_model(rows), self.space.gaps(rows)
        # Only dropout draws from torch's own generator.
        torch.manual_seed(stream_seed(config.seed, f"dropout {ranks.rank}", step))
        rate = config.optimiser.rate(step, config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["rate"]
        self.model.train()
        if self.learning:
            self.learning.begin()
        seen = None
        told = config.observations
        if told is not None and step >= told.after:
            process = self.model.process
            of = counter_noise(config.seed, place, step, Stream.OBSERVATION)
            if told.gaps:
                more = counter_noise(config.seed, place, step, Stream.DATA)
                gaps = leave_out(process, told.gaps, x_0, more, gaps)
            seen = observe_some(told.families, told.share, process, x_0, of, gaps)
        with self._precision():
            loss = self.objective(self.model, x_0, t, weight, noise, seen)
        self.optimiser.zero_grad(set_to_none=True)
        loss.value.backward()
        groups = [group["params"] for group in self.optimiser.param_groups]
        ranks.mean_gradients([parameter for group in groups for parameter in group])
        # Clip the schedule's gradient separately: its scale is unrelated to the network's.
        limit = config.optimiser.clip or math.inf
        norm = max(nn.utils.clip_grad_norm_(group, limit) for group in groups)
        if not math.isfinite(float(norm)):
            raise FitError(
                f"the gradient of step {step} is not finite; lower optimiser.lr "
                f"({config.optimiser.lr}) or resume from the last checkpoint with float32"
            )
        self.optimiser.step()
        self.average.update(step)
        if self.learning:
            self.learning.update(step)
        terms = ranks.gather(loss.terms.float()).cpu()
        self.steps.record(all_t, terms)
        prior = float(prior_part(self.model, x_0, self.objective.convention, seen).detach().mean())
        nats = prior + self.model.T * float((all_weight * terms).mean())
        return nats, {"train/gradient norm": float(norm), "train/lr": rate}

    def _precision(self) -> Any:  # noqa: ANN401  (a context manager of two unrelated types)
        if self.config.precision == "bfloat16":
            return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _watch(self, last: int) -> Any:  # noqa: ANN401
        if not self.ranks.first:
            return nullcontext(None)
        held_out = self.dataset.valid[: self.config.watch.data].to(self.ranks.device)
        return Watch(
            self.averaged,
            self.space.to_model(held_out),
            self.averaged.left_out(held_out),
            self.objective,
            self.config.watch,
            self.config.observations,
            self.options.out,
            self.step,
            last,
        )

    def _project(self) -> bool:
        """Fit by variable projection in one go, without checkpoints, as it takes only minutes."""
        last = self.config.steps
        if self.step < last:
            with self._watch(last) as watch:
                began, where = time.monotonic(), self.ranks.device
                rows = self.space.to_model(self.dataset.train)
                made = None if watch is None else watch.bar.update
                project(self.model.cpu(), rows, self.config, made)
                self.averaged.network.load_state_dict(self.model.to(where).network.state_dict())
                self.step, self.seconds = last, time.monotonic() - began
                if watch is not None:
                    watch.look(last)
                    watch.draw(last)
            self.save()
        return True

    def _resume(self) -> None:
        out = self.options.out
        found = state.read_state(out)
        state.check_same(completed(found.config), self.config.model_dump(mode="json"), out)
        if found.checksum != self.dataset.checksum:
            raise state.CheckpointError(
                f"{out} was fitted to data with checksum {found.checksum}, but the checksum is now "
                f"{self.dataset.checksum}; start with --restart or another --out"
            )
        tensors = state.read_tensors(out)
        self.network.load_state_dict(state.under("network", tensors))
        self.averaged.network.load_state_dict(state.under("average", tensors))
        state.load_optimiser(self.optimiser, self.names, state.under("optimiser", tensors))
        if self.learning:
            self.learning.load(tensors)
        self.steps.history = tensors["steps.history"]
        self.steps.seen = tensors["steps.seen"]
        self.step, self.seconds = found.step, found.seconds
        if self.best is not None and found.best is not None:
            extended = self.config.steps > int(found.config["steps"])
            self.best.load(found.best, state.under("best", tensors), extended)
