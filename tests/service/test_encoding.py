"""JSON in pieces: what orjson writes at once, and never much at once."""

from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codecs import json as encoding
from service.codecs.json import Columns, to_json

NUMPY = orjson.OPT_SERIALIZE_NUMPY
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats()
    | st.text()
    | st.lists(st.integers(0, 3), min_size=0, max_size=3).map(
        lambda shape: np.arange(np.prod([2, *shape]), dtype=np.float32).reshape(2, *shape)
    )
)
VALUES = st.recursive(
    LEAVES, lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(), of, max_size=3)
)


@given(answer=st.dictionaries(st.text(), VALUES, max_size=4))
def test_it_is_what_orjson_writes_at_once(answer: dict[str, object]) -> None:
    assert to_json(answer) == orjson.dumps(answer, option=NUMPY)


@pytest.mark.parametrize("at_once", [1, 5, 60, 1000])
def test_an_array_is_written_as_what_it_is(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_NUMBERS", at_once)
    array = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5) / 7
    assert to_json({"x": array}) == orjson.dumps({"x": array}, option=NUMPY)


@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.floats()), max_size=7), at_once=st.integers(1, 9)
)
def test_columns_are_written_as_the_objects_they_hold(
    rows: list[tuple[int, float]], at_once: int
) -> None:
    t = np.array([t for t, _ in rows], dtype=np.int64)
    value = np.array([value for _, value in rows], dtype=np.float64)
    objects = [{"t": t, "value": value} for t, value in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_OBJECTS", at_once)
        found = to_json({"results": [{"per_step": Columns({"t": t, "value": value})}]})
    assert found == orjson.dumps({"results": [{"per_step": objects}]})


@pytest.mark.parametrize("where", ["samples", "results"])
def test_no_piece_is_much_larger_than_a_sample(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    sizes: list[int] = []

    def dumps(value: object, option: int) -> bytes:
        found = orjson.dumps(value, option=option)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(encoding, "orjson", SimpleNamespace(dumps=dumps, OPT_SERIALIZE_NUMPY=NUMPY))
    samples = np.random.default_rng(0).normal(size=(100, 1, 8, 8)).astype(np.float32)
    one = len(orjson.dumps(samples[0], option=NUMPY))
    results = [{"samples": samples, "per_step": [{"t": 1, "weight": 0.5, "value": 0.25}] * 10}] * 2
    to_json({where: samples} if where == "samples" else {where: results})
    assert max(sizes) < 2 * one
