"""Compare posterior methods and peers with exact posteriors at equal cost.

    python -m benchmarks.posterior [--only "mixture, 8 dimensions, 1 seen" ...] [--again [METHOD]]

Each finished table is written to `docs/posteriors.json` and measured again only with `--again`,
optionally just the rows of methods whose names begin with METHOD. The figures are drawn from that
file. The mixture is measured by sliced Wasserstein distance in data units, bits by total variation,
and a correlated Gaussian by its means and standard deviations. Digits: `benchmarks.digits`.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch

from benchmarks import figures, known, masks, problems
from benchmarks.known import EXACT, Row
from benchmarks.measure import machine, table
from benchmarks.methods import METHODS, posterior
from benchmarks.mixtures import compared, problem
from benchmarks.peers import MASKS, PEERS
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.smc import run
from diffusion.samplers import Ancestral

CALLS = 1000
#: (dimensions, problems, samples per problem): fewer where a sample costs more.
MIXTURES = ((8, 10, 500), (80, 10, 200), (800, 10, 200))
SEEN = (1, 2, 4)


def measured(
    features: int, seen: int, seed: int, samples: int, mask: bool, start: str = ""
) -> list[Row]:
    """Measure distances to one problem's exact posterior, data units."""
    of = problem(features, seen, seed, mask)
    exact = of.exact(10 * samples, seed)
    rows: list[Row] = []
    if EXACT.startswith(start):
        rows.append(compared(EXACT, of.exact(samples, seed + 500_000), exact, 0.0))
    for name in _named(METHODS, start):
        answer = posterior(name, of.model, of.observation, samples, CALLS)
        calls = answer.network_evaluations / samples
        rows.append(compared(name, answer.samples[0], exact, calls))
    peers = PEERS | MASKS if mask else PEERS
    for name in _named(peers, start):
        found = peers[name](of, samples, CALLS, seed)
        rows.append(compared(name, found, exact, float(CALLS)))
    return rows


def evidence_of(features: int, seen: int, seed: int, systems: int, steps: int) -> Row:
    """Measure the RMS error of log p(y) by one system of 64 particles, and its cost."""
    of = problem(features, seen, seed)
    found = run(
        of.model,
        ParticleFilter(Ancestral(steps=steps).plan(of.model), particles=64),
        of.observation.rows(torch.zeros(systems, dtype=torch.long)),
        seed,
        torch.arange(systems),
    )
    error = found.log_evidence - of.log_evidence
    return {
        "error": float(error.square().mean().sqrt()),
        "bias": float(error.mean()),
        "calls": float(found.evaluations[0]),
    }


def _named(methods: Iterable[str], start: str) -> list[str]:
    return [name for name in methods if name.startswith(start)]


def mixture(
    features: int, seen: int, count: int, samples: int, mask: bool = False, start: str = ""
) -> list[Row]:
    """Tabulate the mean distances over problems, with half their 95% confidence intervals."""

    def one(k: int) -> list[Row]:
        return measured(features, seen, _seed(features, seen, k), samples, mask, start)

    return _over_problems(one, count)


def random_masks(features: int, count: int, samples: int, start: str = "") -> list[Row]:
    """Tabulate the same over observations of random coordinates."""
    return _over_problems(lambda k: masks.measured(features, k, samples, start), count)


def _over_problems(measure: Callable[[int], list[Row]], count: int) -> list[Row]:
    found: dict[str, list[Row]] = {}
    for k in range(count):
        begun = time.perf_counter()
        for row in measure(k):
            found.setdefault(str(row["method"]), []).append(row)
        print(f"  problem {k}: {time.perf_counter() - begun:.0f} s", flush=True)
    return [_summary(name, rows) for name, rows in found.items()]


def evidence(features: int, count: int, systems: int) -> list[Row]:
    """Tabulate the error of one system of 64 particles by observed values and steps."""
    rows: list[Row] = []
    for seen in SEEN:
        for steps in (63, 250):
            each = [
                evidence_of(features, seen, _seed(features, seen, k), systems, steps)
                for k in range(count)
            ]
            errors = [float(row["error"]) for row in each]
            rows.append(
                {
                    "seen": float(seen),
                    "steps": float(steps),
                    "error": statistics.mean(errors),
                    "interval": _interval(errors),
                    "bias": statistics.mean(float(row["bias"]) for row in each),
                    "calls": each[0]["calls"],
                }
            )
    return rows


def _seed(features: int, seen: int, k: int) -> int:
    return 1000 * features + 100 * seen + k


def _summary(name: str, rows: list[Row]) -> Row:
    two, one = ([float(row[key]) for row in rows] for key in ("distance", "order 1"))
    return {
        "method": name,
        "distance": statistics.mean(two),
        "interval": _interval(two),
        "order 1": statistics.mean(one),
        "interval 1": _interval(one),
        "calls": rows[0]["calls"],
        "problems": float(len(rows)),
    }


def _interval(values: list[float]) -> float:
    """Return half the width of Student's 95% confidence interval of the mean."""
    n = len(values)
    quantile = {5: 2.776, 10: 2.262}[n]
    return float(quantile * statistics.stdev(values) / math.sqrt(n))


def cells(start: str = "") -> dict[str, Callable[[], list[Row]]]:
    """Return every table by its title; mixtures and bits keep methods beginning with `start`."""
    found: dict[str, Callable[[], list[Row]]] = {}
    found["correlated"] = lambda: known.correlated(2000)
    for case in problems.CASES:
        found[case] = partial(known.bits, case, 1000, CALLS, start)
    found["evidence, 8 dimensions"] = partial(evidence, 8, 10, 16)
    for features, samples in ((8, 500), (80, 200)):
        title = f"random masks, {features} dimensions"
        found[title] = partial(random_masks, features, 10, samples, start)
    found["mixture, 8 dimensions, 2 coordinates"] = partial(mixture, 8, 2, 5, 300, True, start)
    for features, count, samples in MIXTURES:
        for seen in SEEN:
            title = f"mixture, {features} dimensions, {seen} seen"
            found[title] = partial(mixture, features, seen, count, samples, start=start)
    return found


def _over(kept: list[Row], rows: list[Row]) -> list[Row]:
    """Replace the rows of the same methods, or all rows if some have no method."""
    if not all("distance" in row for row in rows):
        return rows
    new = {row["method"]: row for row in rows}
    return [new.pop(row["method"], row) for row in kept] + list(new.values())


def show(rows: list[Row]) -> str:
    """Format a Markdown table."""
    cells = [[v if isinstance(v, str) else f"{v:.3g}" for v in row.values()] for row in rows]
    return table(list(rows[0]), cells)


def main() -> None:
    """Measure missing tables, print and write them, and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("docs/posteriors.json"))
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    parser.add_argument("--only", nargs="*", default=list(cells()), choices=list(cells()))
    words = "what has been measured too: all of it, or the rows of methods that begin so"
    parser.add_argument("--again", nargs="?", const="", metavar="METHOD", help=words)
    asked = parser.parse_args()
    again = asked.again is not None
    torch.set_num_threads(1)
    print(machine(), flush=True)
    kept = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    for title in asked.only:
        if title in kept and not again:
            continue
        begun = time.perf_counter()
        rows = cells(asked.again if title in kept else "")[title]()
        print(f"\n{title}: {time.perf_counter() - begun:.0f} s\n\n{show(rows)}", flush=True)
        # Read again: another process may have written other cells meanwhile.
        kept = json.loads(asked.json.read_text()) if asked.json.exists() else {}
        kept[title] = _over(kept.get(title, []), rows)
        asked.json.write_text(json.dumps(kept, indent=1) + "\n")
    figures.draw_all(kept, asked.figures)


if __name__ == "__main__":
    main()
