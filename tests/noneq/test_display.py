"""What a notebook, an interpreter and numpy make of an answer."""

from inspect import signature
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import noneq
from noneq import (
    AsyncClient,
    Client,
    Column,
    Imputed,
    Likelihoods,
    Models,
    Posterior,
    Samples,
    Scores,
)
from noneq.codec import PARTS, Body
from noneq.models import read_models
from noneq.tables import Table

FACTS = {"model": "m", "seed": 3}
IMAGES = np.arange(5 * 12, dtype=np.float32).reshape(5, 1, 3, 4)


def samples(x: np.ndarray, **fields: object) -> Samples:
    return Samples(Body({**FACTS, **fields}, {"samples": x}))


def posterior() -> Posterior:
    doubt = {"diagnostics": {"warning": "one ancestor <left>"}}
    fields = {**FACTS, "method": "twisted", "results": [{}, doubt]}
    x = np.stack([IMAGES[:3], IMAGES[2:]])
    return Posterior(Body(fields, {"samples": x, "mean": x.mean(1), "std": x.std(1)}))


def likelihoods(count: int) -> Likelihoods:
    nats = np.linspace(-500, -400, count)
    arrays = dict.fromkeys(("bound", "standard_error", "relative_to_prior", *PARTS), nats)
    fields = {**FACTS, "convention": "discretised", "dims": 784, "uncompared": "a new model"}
    return Likelihoods(Body(fields, arrays))


def test_an_answer_is_a_sequence_and_an_array() -> None:
    for found in (samples(IMAGES), posterior(), likelihoods(4)):
        main = found.numpy()
        assert len(found) == len(main)
        assert np.array_equal(found[1], main[1])
        assert np.array_equal(found[-1], list(found)[-1])
        assert np.array_equal(found[:2], main[:2])
        assert np.array_equal(found[np.arange(len(main)) != 1], np.delete(main, 1, axis=0))
        assert np.array_equal(np.asarray(found), main)
        assert np.asarray(found, np.float64).dtype == np.float64


def test_pictures_are_shown_as_pictures() -> None:
    found = samples(IMAGES)
    png = found._repr_png_()
    assert png is not None
    with Image.open(BytesIO(png)) as picture:
        assert np.array_equal(np.asarray(picture), found.pixels())
    shown = found._repr_html_()
    assert "data:image/png;base64," in shown
    assert f'width="{4 * found.pixels().shape[1]}"' in shown
    assert "5 samples of m, seed 3" in shown


def test_a_posterior_is_shown_with_its_warnings() -> None:
    shown = posterior()._repr_html_()
    assert "m given 2 observations, method twisted, seed 3: 3 samples each" in shown
    assert "example 1: one ancestor &lt;left&gt;" in shown
    assert "example 0" not in shown


def test_numbers_are_shown_as_a_table_that_ends() -> None:
    found = likelihoods(40)
    assert found._repr_png_() is None
    shown = found._repr_html_()
    assert shown.count("<tr>") == 11
    assert "10 of 40 rows" in shown
    assert "<td>-500</td>" in shown
    assert "<td></td>" in shown  # typicality was not measured
    assert "a new model" in shown
    wide = samples(np.zeros((2, 30), np.float32), columns=[f"<{i}>" for i in range(30)])
    assert wide._repr_png_() is None
    shown = wide._repr_html_()
    assert "12 of 30 columns" in shown
    assert "<th>&lt;11&gt;</th>" in shown
    assert "&lt;12&gt;" not in shown


def test_without_pillow_there_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    found = samples(IMAGES)
    assert found._repr_png_() is None
    assert found._repr_html_().startswith("<table>")


def test_a_filled_table_shows_what_was_drawn() -> None:
    columns = (Column("height", "number"), Column("sex", "category", labels=("f", "m")))
    table = Table(("height", "sex"), [[1.5, "f"], [None, None]])
    values = np.array([[[1.0, 0.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0]]])
    drawn = np.array([[True, True]])
    warned = dict.fromkeys(range(12), "doubtful")
    found = Imputed(table, columns, [1], drawn, values, "people", 3, "learned", warned, "It fares.")
    shown = found._repr_html_()
    assert "2 gaps of 2 rows, 4 draws by people, method learned, seed 3" in shown
    assert "<td>height</td><td>2.5</td>" in shown
    assert "m 0.75, f 0.25" in shown
    assert "<div>It fares.</div><div>row 0: doubtful</div>" in shown
    assert "and 4 more" in shown
    nats = np.array([[-1.0, np.nan]])
    scores = Scores(
        table,
        columns,
        nats[:, 0],
        nats[:, 0],
        nats[:, 0],
        nats[:, 0],
        nats,
        nats,
        "people",
        3,
        None,
    )
    assert "<th>nats of height</th>" in scores._repr_html_()


def models() -> Models:
    one = {
        "kind": "image", "shape": [1, 3, 4], "process": "gaussian", "steps": 8, "network": "unet",
        "parameters": 10,
    }  # fmt: skip
    names = ("a", "b")
    return read_models(
        {"models": [{"name": n, **one} for n in names], "default": None, "refused": []}
    )


def test_models_are_found_by_name() -> None:
    found = models()
    assert [model.name for model in found] == ["a", "b"]
    assert len(found) == 2
    assert found["b"] is found[1]
    with pytest.raises(KeyError, match="the models are a, b"):
        found["c"]
    assert "<td>unet</td>" in found._repr_html_()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_call_shows_every_option_and_its_answer(kind: type[Client]) -> None:
    """To whoever asks with ? or Shift-Tab."""
    found = signature(kind("localhost:1").sample)
    assert list(found.parameters)[:2] == ["num_samples", "sampler"]
    assert {"model", "seed", "deadline", "previews"} <= set(found.parameters)
    assert found.return_annotation is Samples
    assert list(signature(kind("localhost:1").model).parameters) == ["name"]


def test_there_is_a_version() -> None:
    assert noneq.__version__[0].isdecimal()
