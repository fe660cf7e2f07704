"""Tables: what a file says is what is read, or a sentence says why not and where."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from noneq import FileError, reading
from noneq.models import Model
from noneq.reading.tables import Table

NAN = float("nan")


def model(columns: tuple[str, ...] | None = None, shape: tuple[int, ...] = (2,)) -> Model:
    kind = "image" if len(shape) == 3 else "vector"
    return Model("m", kind, shape, "gaussian", 10, "mlp", 1, (), columns=columns)


def values(path: Path, of: Model) -> list[object]:
    found, known = reading.read_all(path, of)
    assert np.array_equal(known, ~np.isnan(found))
    listed: list[object] = found.tolist()
    return listed


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("\ufeff1,2\n3,4\n", [[1, 2], [3, 4]]),  # a byte order mark
        ("\ufeffa,b\n3,4\n", [[3, 4]]),
        ('\ufeff"a","b"\n3,4\n', [[3, 4]]),
        ("NA,2\n3,4\n", [[NAN, 2], [3, 4]]),  # a gap in the first row is no name
        ("?,2\n3,n/a\n", [[NAN, 2], [3, NAN]]),
        ("?,NA\n3,4\n", [[NAN, NAN], [3, 4]]),
        ("1,\n null ,4\n", [[1, NAN], [NAN, 4]]),
        ("1,NaN\nNone,4\n", [[1, NAN], [NAN, 4]]),
        ("a;b\n1;2\n", [[1, 2]]),
        ("a\tb\n1\t2\n", [[1, 2]]),
        ('"a;1","b"\n"1","2"\n', [[1, 2]]),  # what is quoted separates nothing
        ("\n\n1,2\n\n  \n3,4\n\n", [[1, 2], [3, 4]]),
        ("1,2\r\n3,4\r5,6\n", [[1, 2], [3, 4], [5, 6]]),
        (" 1 , 2 \n3, 4\n", [[1, 2], [3, 4]]),
        ("1,2", [[1, 2]]),
        ("1e-3,-.5\n", [[1e-3, -0.5]]),
        ("True,False\n1,0\n", [[1, 0], [1, 0]]),
        ("# a,b\n1,2\n", [[1, 2]]),  # as numpy.savetxt names columns
        ("키,몸무게\n1,2\n", [[1, 2]]),
        ("e1,e2\n1,2\n", [[1, 2]]),
        ("2019,2020\n1,2\n", [[2019, 2020], [1, 2]]),  # numbers are no names
    ],
)
def test_a_table_is_what_it_says(tmp_path: Path, text: str, rows: list[list[float]]) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    np.testing.assert_array_equal(values(path, model()), rows)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"1,5;2,5\n3;4\n", r"row 0, column 0, line 1: '1,5' is no number: write 1234\.5"),
        (b'1,2\n"1,234",2\n', r"row 1, column 0, line 2: '1,234' .* nothing between thousands"),
        (b"a,b\n1,2\n1_000,2\n", r"row 1, column 0 \(a\), line 3: '1_000' is no number"),
        (b"1_0,2_0\n1,2\n", "row 0, column 0.*'1_0'"),
        (b"5%,$6\n1,2\n", "row 0, column 0.*'5%'"),
        ("\u22121,\u22122\n1,2\n".encode(), "row 0, column 0"),
        (b"2020-01-01,2020-01-02\n1,2\n", "row 0, column 0"),
        (b"inf,-inf\n1,2\n", "'inf' is no number that is finite"),
        (b"0x10,0x11\n1,2\n", "'0x10'"),
        (b"1,2\n1,1e39\n", "row 1, column 1.*'1e39' is no number that is finite in float32"),
        (b"1 2\n3 4\n", "separated by commas"),
        (b"1|2\n3|4\n", "separated by commas"),
        (b"a,2020\n1,2\n", "row 0, column 0.*a heading is the first line and has no number"),
        (b",a,b\n0,1,2\n", "column 0 has no name in the heading.*index of pandas"),
        (b"a,b,\n1,2,\n", "column 2 has no name"),
        (b"a,a\n1,2\n", "two columns are called a"),
        (b"1,2\n3\n", r"row 1 \(line 2\) has 1 cells"),
        (b"1,2,3\n", r"shape \[1, 3\], where m takes \[2\]"),
        ("grö,b\n1,2\n".encode("latin-1"), "no text in UTF-8"),
        (b"1,2\n" * 40_000 + b"1,\xf6\n", "no text in UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (b"1,2\n3,\0\n", "row 1, column 1"),
        (b'1,2\n"3,4\n5,6\n', "no table that can be read"),
        (b"9" * 200_000 + b",2\n", "no table that can be read"),
        (b"", "is empty"),
        (b"\n  \n\n", "is empty"),
        (b"a,b\n", r"has a heading \(a, b\), and no rows"),
        (b"sep=;\n1;2\n", "has no name"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(tmp_path: Path, raw: bytes, told: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(raw)
    with pytest.raises(FileError, match=told):
        reading.read_all([path], model())


def test_columns_are_taken_by_their_names(tmp_path: Path) -> None:
    path, ours = tmp_path / "t.csv", model(("width", "height"))
    path.write_text("height,width\n1,2\n3,\n")
    np.testing.assert_array_equal(values(path, ours), [[2, 1], [NAN, 3]])
    np.testing.assert_array_equal(values(path, model()), [[1, 2], [3, NAN]])  # it has no names
    path.write_text("1,2\n")  # nor has this
    np.testing.assert_array_equal(values(path, ours), [[1, 2]])
    path.write_text("id,width,colour\n1,2,3\n")
    told = "lacks height and has id, colour, which the model does not know: .* width, height"
    with pytest.raises(FileError, match=told):
        reading.read_all([path], ours)
    path.write_text("height,width\n0,1\n")
    assert reading.read_mask(str(path), ours).tolist() == [[True, False]]


def test_a_wide_table_and_one_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    names = [f"x{i}" for i in range(50_000)]
    path.write_text(",".join(reversed(names)) + "\n" + ",".join(map(str, range(50_000))) + "\n")
    found = np.array(values(path, model(tuple(names), (50_000,))))
    assert np.array_equal(found[0], np.arange(50_000)[::-1])
    path.write_text("size\n1\n2\n")
    assert values(path, model(None, (1,))) == [[1], [2]]


def test_a_heading_that_counts_is_doubted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("0,1,2\n0.5,0.6,0.7\n")  # as pandas names the columns of an array
    assert "the first line (0, 1, 2, ...) was read as numbers" in str(Table(path).note)
    path.write_text("0,1,1\n0,1,0\n")
    assert Table(path).note is None


def saved(array: object, **named: object) -> bytes:
    out = io.BytesIO()
    if named:
        np.savez(out, **named)  # type: ignore[arg-type]
    else:
        np.save(out, array, allow_pickle=True)  # type: ignore[arg-type]
    return out.getvalue()


ROWS = np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    "array",
    [
        ROWS.astype(np.float16),
        ROWS.astype(">f4"),
        ROWS.astype(">i8"),
        ROWS.astype(np.uint8),
        np.asfortranarray(ROWS),
        ROWS[::-1][::-1],
    ],
    ids=lambda array: str(array.dtype),
)
def test_every_kind_of_number_is_read(tmp_path: Path, array: object) -> None:
    for ending, raw in ((".npy", saved(array)), (".npz", saved(None, rows=array))):
        path = tmp_path / f"a{ending}"
        path.write_bytes(raw)
        found, _ = reading.read_all([path], model())
        assert np.array_equal(found, ROWS)
        assert found.dtype.isnative


IMAGE = (3, 4, 6)


@pytest.mark.parametrize(
    ("shape", "of", "found"),
    [
        ((5, 2), (2,), (5, 2)),
        ((2,), (2,), (1, 2)),
        ((5, 72), IMAGE, (5, 3, 4, 6)),
        ((3, 4, 6), IMAGE, (1, 3, 4, 6)),
        ((5, 4, 6), (1, 4, 6), (5, 1, 4, 6)),
        ((4, 6), (1, 4, 6), (1, 1, 4, 6)),
        ((5, 4, 6, 3), IMAGE, "channels are last: .*moveaxis"),
        ((4, 6, 3), IMAGE, "channels are last"),
        ((5, 4, 6, 1), (1, 4, 6), "channels are last"),
        ((5, 3, 6, 4), IMAGE, "cut or reshape"),
        ((5, 4, 18), IMAGE, "cut or reshape"),
        ((3, 24), IMAGE, "cut or reshape"),
        ((2, 5), (2,), "cut or reshape"),
        ((5, 1, 2), (2,), "cut or reshape"),
        ((5,), (2,), "cut or reshape"),
        ((), (2,), "expected rows"),
        ((0, 2), (2,), "expected rows"),
    ],
)
def test_only_rows_are_reshaped(
    tmp_path: Path, shape: tuple[int, ...], of: tuple[int, ...], found: tuple[int, ...] | str
) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(saved(np.zeros(shape)))
    if isinstance(found, str):
        with pytest.raises(FileError, match=found):
            reading.read_all([path], model(None, of))
    else:
        assert reading.read_all([path], model(None, of))[0].shape == found


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a file was unpickled",)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (saved(np.array([[Trap(), 1]], object)), "never unpickled"),
        (saved(None, a=np.array([[Trap(), 1]], object)), "never unpickled"),
        (pickle.dumps(Trap()), "never unpickled"),
        (saved(np.array([["a", "b"]])), "holds <U1, expected real numbers"),
        (saved(ROWS.astype(complex)), "expected real numbers"),
        (saved(np.zeros(3, [("a", "f4")])), "expected real numbers"),
        (saved(np.array([[1, np.inf]])), r"row 0, place \[1\]: inf is no finite float32"),
        (saved(np.array([[1, 1e39]])), "no finite float32"),
        (saved(ROWS)[:140], "no array that can be read"),
        (saved(ROWS)[:20], "no array that can be read"),
        (saved(None, a=ROWS)[:80], "no array that can be read"),
        (saved(None, a=ROWS, b=ROWS), r"holds 2 arrays \(a, b\)"),
        (b"", "no array that can be read"),
        (b"1,2\n", "no .npy"),
    ],
)
def test_an_array_that_is_none_is_refused(tmp_path: Path, raw: bytes, told: str) -> None:
    for ending in (".npy", ".npz"):
        path = tmp_path / f"a{ending}"
        path.write_bytes(raw)
        with pytest.raises(FileError, match=told):
            reading.read_all([path], model())


def test_masks_and_matrices_hold_numbers_alone(tmp_path: Path) -> None:
    path, image = tmp_path / "m.csv", model(None, (3, 2, 2))
    path.write_text("1,0\n0,1\n")
    found = reading.read_mask(str(path), image)
    assert found.tolist() == [[[[True, False], [False, True]]] * 3]
    assert reading.read_table(str(path)).tolist() == [[1, 0], [0, 1]]
    path.write_text("1,0\n0,0.5\n")
    with pytest.raises(FileError, match="1 where a value was observed"):
        reading.read_mask(str(path), image)
    path.write_text("1,\n0,1\n")
    with pytest.raises(FileError, match=r"m\.csv"):
        reading.read_mask(str(path), image)
    with pytest.raises(FileError, match=r"m\.csv: \[0, 1\] is a gap"):
        reading.read_table(str(path))
    for name in ("nowhere.csv", "nowhere.npy", str(tmp_path)):
        with pytest.raises(FileError):
            reading.read_table(name)
