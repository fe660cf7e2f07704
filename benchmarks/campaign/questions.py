"""Random valid requests for a model, drawn from a seed.

Their data are held-out, at the model's own scale, far out, constant or tiny: anything the data
space allows. Sizes are small, so that thousands of requests take minutes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Fields = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A served model as a caller sees it.

    Attributes:
        name: the model's name.
        kind: kind of its data, "image", "vector" or "bits".
        shape: shape of an example.
        levels: levels of integer data, else None.
        steps: T.
        base_rate: of a binomial process, else None.
        labels: labels of its classifier; empty without one.
        examples: held-out data, [N, *shape].
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    levels: int | None
    steps: int
    base_rate: float | None
    labels: tuple[str, ...]
    examples: Array

    @property
    def dear(self) -> bool:
        """Whether a network evaluation takes milliseconds or more."""
        return len(self.shape) == 3


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        path: of the route.
        fields: its JSON body.
        exact: values that the answer must repeat exactly and where, or None.
    """

    path: str
    fields: Fields
    exact: tuple[Array, NDArray[np.bool_]] | None = field(default=None, compare=False)


class Questions:
    """A stream of requests drawn from one seed."""

    def __init__(self, targets: list[Target], seed: int) -> None:
        self.targets, self.rng = targets, np.random.default_rng(seed)

    def draw(self) -> Question:
        """Draw the next request."""
        target = self.targets[self.rng.integers(len(self.targets))]
        routes = [self._sample, self._loglik, self._inpaint, self._denoise, self._posterior]
        weights = [1, 1, 2, 1, 2]
        found: Question = self._pick(np.repeat(np.asarray(routes, object), weights).tolist())(
            target
        )
        return found

    # ------------------------------------------------------------------------------------ routes

    def _sample(self, target: Target) -> Question:
        fields = self._asked(target)
        fields["num_samples"] = self._count(64, dear=4, target=target)
        kinds: list[Fields] = [{"name": "ancestral"}]
        if target.kind != "bits":
            kinds += [{"name": "ddim", "eta": self._pick([0, 0.5, 1.0])}, {"name": "dpmpp_2m"}]
        steps = self._steps(target)
        fields["sampler"] = {**self._pick(kinds), "steps": steps}
        if self._chance(0.2):
            fields["frames"] = int(self.rng.integers(1, 9))
        return Question("/sample", fields)

    def _loglik(self, target: Target) -> Question:
        fields = self._asked(target)
        rows = np.stack([self._data(target) for _ in range(self._count(6, dear=2, target=target))])
        fields["data"] = rows.tolist()
        fields["convention"] = self._pick([None, "paper", self._convention(target)])
        small = max(2, target.steps // 250)
        choice = self.rng.integers(5)
        if choice == 0 and not target.dear:
            fields["trajectories"] = small
        elif choice == 1:
            # The paper's convention fixes the last step, so a chain of one step has no terms.
            least = 2 if fields["convention"] == "paper" else 1
            fields["steps"] = int(self.rng.integers(least, 12))
        else:
            fields["terms"] = int(self.rng.integers(4, 12))
        fields["per_step"] = bool(self._chance(0.2))
        return Question("/loglik", fields)

    def _inpaint(self, target: Target) -> Question:
        fields, seen = self._conditions(target)
        known = self._mask(target)
        fields |= {"observed": seen.tolist(), "known": known.astype(int).tolist()}
        noise = self._noise(target)
        if noise:
            fields |= noise
        fields["method"] = self._method(exact=not noise)
        exact = None if noise else (seen, np.broadcast_to(known, seen.shape))
        return Question("/inpaint", fields, exact)

    def _denoise(self, target: Target) -> Question:
        fields, seen = self._conditions(target)
        noise = self._noise(target, always=True)
        methods: list[Any] = ["auto", {"name": "twisted", "particles": self._particles()}]
        method = self._pick(methods)
        fields |= {"observed": seen.tolist(), **noise, "method": method}
        return Question("/denoise", fields)

    def _posterior(self, target: Target) -> Question:
        fields, seen = self._conditions(target)
        fields["method"] = {
            "name": "twisted",
            "particles": self._particles(),
            "systems": self._pick(["independent", "weighted", "joint"]),
            "covariance": self._pick(["auto", "full", "diagonal", "independent"]),
            "products": int(self.rng.integers(1, 9)),
        }
        if fields["method"]["systems"] == "joint":
            fields["num_samples"] = min(fields["num_samples"], fields["method"]["particles"])
        if target.labels and self._chance(0.4):
            fields["label"] = self._pick(list(target.labels))
            if self._chance(0.5):
                return Question("/posterior", fields)
        if target.kind == "bits" or self._chance(0.3):
            known = self._mask(target)
            fields |= {"observed": seen.tolist(), "known": known.astype(int).tolist()}
            return Question("/posterior", {**fields, **self._noise(target)})
        operator, through = self._operator(target)
        fields["operator"] = operator
        fields["observed"] = np.stack([through(row) for row in seen]).tolist()
        return Question("/posterior", {**fields, **self._noise(target, always=True)})

    # ------------------------------------------------------------------------------------- parts

    def _asked(self, target: Target) -> Fields:
        return {"model": target.name, "seed": int(self.rng.integers(2**31))}

    def _conditions(self, target: Target) -> tuple[Fields, Array]:
        fields = self._asked(target)
        fields["num_samples"] = self._count(6, dear=2, target=target)
        fields["sampler"] = {"steps": self._steps(target)}
        if self._chance(0.2):
            fields["quantiles"] = [0.0, 0.1, 0.5, 1.0]
        count = 1 if target.dear else int(self.rng.integers(1, 4))
        return fields, np.stack([self._data(target) for _ in range(count)])

    def _data(self, target: Target) -> Array:
        """Draw an example of one of many kinds, exactly representable in float32."""
        rng, shape = self.rng, target.shape
        example = target.examples[rng.integers(len(target.examples))].astype(np.float64)
        if target.kind == "bits":
            # Bits that match no pattern get their own 422, so use real examples half of the time.
            return example if self._chance(0.5) else rng.integers(0, 2, shape).astype(np.float64)
        if target.levels is not None:
            top = target.levels - 1
            found = self._pick(
                [
                    lambda: example,
                    lambda: example,
                    lambda: rng.integers(0, top + 1, shape),
                    lambda: np.full(shape, rng.integers(0, top + 1)),
                    lambda: top - example,
                ]
            )()
            return np.asarray(found, np.float64)
        scale = self._pick([0.0, 1e-6, 0.3, 1.0, 3.0, 8.0, 100.0, 1e4])
        x: Array = example * self._pick([1.0, 1.0, 0.0]) + scale * rng.standard_normal(shape)
        return x.astype(np.float32).astype(np.float64)

    def _mask(self, target: Target) -> NDArray[np.bool_]:
        shape = target.shape
        known: NDArray[np.bool_] = self.rng.random(shape) < self._pick([0.05, 0.5, 0.95, 1.1])
        if target.dear and self._chance(0.5):
            known = np.zeros(shape, bool)
            known[..., : shape[-1] // 2] = True
        known.flat[self.rng.integers(known.size)] = True
        return known

    def _noise(self, target: Target, always: bool = False) -> Fields:
        if not always and self._chance(0.5):
            return {}
        if target.kind == "bits":
            return {"flip_probability": self._pick([1e-6, 0.01, 0.1, 0.3, 0.49])}
        unit = 255.0 if target.levels else 1.0
        return {"noise_std": unit * self._pick([1e-5, 1e-3, 0.03, 0.3, 1.0, 10.0, 1e3])}

    def _operator(self, target: Target) -> tuple[Fields, Any]:
        rng, shape = self.rng, target.shape
        if not target.dear or self._chance(0.4):
            size = int(np.prod(shape))
            count = int(rng.integers(1, min(size, 6) + 1))
            rows = self._pick([1.0, 1e-3, 30.0]) * rng.standard_normal((count, size))
            return {"kind": "dense", "rows": rows.tolist()}, lambda x: rows @ x.reshape(-1)
        if self._chance(0.6):
            block = self._pick([n for n in (4, 7, 8) if shape[-1] % n == 0 and shape[-2] % n == 0])

            def pool(x: Array) -> Array:
                c, h, w = x.shape
                return np.asarray(x.reshape(c, h // block, block, w // block, block).mean((2, 4)))

            return {"kind": "average-pooling", "size": block}, pool
        kernel = [[1 / 9] * 3] * 3

        def blur(x: Array) -> Array:
            wide = np.pad(x, ((0, 0), (1, 1), (1, 1)))
            h, w = x.shape[1:]
            parts = [wide[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
            return np.asarray(sum(parts) / 9)

        if np.prod(shape) > 1024:  # the most numbers that an operator may observe
            return {"kind": "average-pooling", "size": 4}, lambda x: x.reshape(
                x.shape[0], x.shape[1] // 4, 4, x.shape[2] // 4, 4
            ).mean((2, 4))
        return {"kind": "blur", "kernel": kernel}, blur

    def _method(self, *, exact: bool) -> Any:  # noqa: ANN401 - as JSON has it
        systems = self._pick(["independent", "weighted"])
        twisted = {"name": "twisted", "particles": self._particles(), "systems": systems}
        repaint = {"name": "repaint", "jump": 2, "repeats": 2}
        methods = ["auto", "auto", "product", twisted, {**twisted, "name": "auto"}]
        return self._pick([*methods, repaint] if exact else methods)

    def _particles(self) -> int:
        return int(self._pick([1, 2, 4, 8]))

    def _steps(self, target: Target) -> int:
        most = 6 if target.dear else min(target.steps, 60)
        return int(self.rng.integers(1, most + 1))

    def _convention(self, target: Target) -> str:
        real = target.kind != "bits" and target.levels is None
        return "density" if real else "discretised"

    def _count(self, most: int, *, dear: int, target: Target) -> int:
        return int(self.rng.integers(1, (dear if target.dear else most) + 1))

    def _chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def _pick(self, items: list[Any]) -> Any:  # noqa: ANN401 - one of them
        return items[self.rng.integers(len(items))]
