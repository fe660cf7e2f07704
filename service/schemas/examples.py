"""Example requests of the OpenAPI document, /docs and docs/api.md, which work as they stand.

A test posts each example to the shipped models. The examples name their model, because a service
with several has no default, and use few steps, so that a CPU answers in seconds.
"""

from typing import Final

from pydantic import JsonValue

# A held-out "7" of MNIST as base64 PNGs: whole, its lower half transparent, its 4 x 4 averages.
_DIGIT: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAwUlEQVR42mNgGDaAEUKFpD77sfTFHeyS9xQYGBg+"
    "X4UKPuk6w8DAwMDAAuGm6l/TMnSweCzLwPDntSTDozPIOhkYGBgYBA3PmDIw/Lh1XShnGi5nBP+9KIRLTuzl/2Ao"
    "kwlDMlv0/U1cGq1//rPD6fHWf7tZcclxnv1hhVNj3b9tOOW8f3+wxCUnfPffMlxyzKf/3VbGJan2758vLjn5B/+K"
    "GXF78Z8JLjnbT+iSSGFrw8Nw9wuKJAsy56LzO+ITGABpETyQcCy90wAAAABJRU5ErkJggg=="
)
_UPPER_HALF: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAQAAADYBBcfAAAAoklEQVR42u2SMQrCQBBF34oXMKBgIVjbSArBMneI"
    "V0ilJ/EA3sDbpLFQUcQiiigWFjYplG9jkQ3KBrHcN83MMI8pZgziJ2rgxb+L9WIxIuFEzpwzO4doinfc031nd5al"
    "wSNT0m8bE/qs6BESMeRAB4AHV9pAZonm8+c0CEkZAJCzZU3AhJk1I3fEemqhwO66tZYukuJSt8I5xjS5scHj8VTj"
    "BWZIV5YDItPJAAAAAElFTkSuQmCC"
)
_COARSE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAcAAAAHCAAAAADhOQgPAAAAOUlEQVR42jXBsQ2AIAAAsAYZjJubTLxBolcy8oQT"
    "8Q1f8QHCZMtvTxAdZ8p3B3W14Ppe2FogUJ7BBI81B01iff1qAAAAAElFTkSuQmCC"
)

SAMPLE: Final[list[JsonValue]] = [
    {"model": "mnist", "num_samples": 4, "seed": 7, "sampler": {"name": "ancestral", "steps": 50}},
    {"model": "mnist", "num_samples": 4, "sampler": {"name": "ddim", "steps": 50, "eta": 0}},
    {"model": "mnist", "num_samples": 4, "sampler": {"name": "dpmpp_2m", "steps": 20}},
]
LOGLIK: Final[list[JsonValue]] = [
    {"model": "gaussian-mixture", "data": [[0.5, -1.0], [9.0, 9.0]], "seed": 7},
    {"model": "mnist", "data": [_DIGIT], "terms": 64},
    {"model": "bit-patterns", "data": [[1, 1, 1, 1, 0, 0, 0, 0]], "trajectories": 16},
    {"model": "mnist", "data": [_DIGIT], "strata": "importance", "target_error": 20},
    {"model": "mnist", "data": [_DIGIT], "steps": 50},
]
POSTERIOR: Final[list[JsonValue]] = [
    {
        "model": "gaussian-mixture",
        "operator": {"kind": "dense", "rows": [[1.0, 0.5]]},
        "observed": [[0.3]],
        "noise_std": 0.1,
        "method": {"name": "twisted", "particles": 16},
        "num_samples": 16,
        "quantiles": [0.05, 0.5, 0.95],
        "seed": 7,
    },
    {
        "model": "mnist",
        "operator": {"kind": "average-pooling", "size": 4},
        "observed": [_COARSE],
        "noise_std": 8,
        "method": {"name": "twisted", "covariance": "diagonal"},
        "num_samples": 2,
        "sampler": {"steps": 25},
    },
    {
        "model": "bit-patterns",
        "observed": [[1, 1, 1, 1, 0, 0, 0, 0]],
        "known": [1, 1, 1, 0, 0, 0, 0, 0],
        "flip_probability": 0.1,
    },
    {
        "model": "mnist",
        "label": "3",
        "num_samples": 8,
        "method": {"name": "twisted", "systems": "joint"},
        "sampler": {"steps": 40},
    },
    {
        "model": "mnist",
        "observed": [_UPPER_HALF],
        "noise_std": 25,
        "label": "9",
        "label_probabilities": True,
        "num_samples": 2,
        "sampler": {"steps": 25},
    },
]
INPAINT: Final[list[JsonValue]] = [
    {
        "model": "gaussian-mixture",
        "observed": [[0.5, 0.0]],
        "known": [1, 0],
        "num_samples": 4,
        "seed": 7,
    },
    {"model": "mnist", "observed": [_UPPER_HALF], "num_samples": 2, "sampler": {"steps": 40}},
    {
        "model": "bit-patterns",
        "observed": [[1, 1, 1, 1, 0, 0, 0, 0]],
        "known": [1, 1, 1, 0, 0, 0, 0, 0],
        "method": "learned",
        "num_samples": 4,
    },
]
DENOISE: Final[list[JsonValue]] = [
    {
        "model": "gaussian-mixture",
        "observed": [[0.5, -1.0]],
        "noise_std": 0.5,
        "num_samples": 8,
        "seed": 7,
    },
    {"model": "bit-patterns", "observed": [[1, 1, 1, 1, 0, 0, 0, 1]], "flip_probability": 0.1},
]
