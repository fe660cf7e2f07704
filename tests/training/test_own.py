"""Data of one's own: read, parted, configured, fitted and exported."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.checkpoint import load as load_artefact
from diffusion.checkpoint import save
from diffusion.observation import Observation
from diffusion.posterior import Auto
from diffusion.samplers import Ancestral, sample
from training import user_data as own
from training.cli import main
from training.config import ConfigError, FitConfig
from training.data import DataError, Dataset, load
from training.data.pictures import PicturesConfig
from training.data.table import TableConfig
from training.export import export
from training.fit.initial import build_model
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks


def paint(folder: Path, count: int, size: tuple[int, int] = (10, 8)) -> None:
    """Different pictures in colour, some of them in a folder below."""
    (folder / "below").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("below" if i % 2 else ".") / f"{i}.png")


def rows_of(dataset: Dataset) -> list[set[bytes]]:
    splits = (dataset.train, dataset.valid, dataset.test)
    return [{row.numpy().tobytes() for row in split} for split in splits]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paint(tmp_path / "photographs", 40)
    return tmp_path / "photographs"


def test_pictures_are_parted_by_their_pixels(folder: Path) -> None:
    config = PicturesConfig(folder=str(folder), side=4)
    before = load(config)
    assert before.train.shape[1:] == (3, 4, 4)
    assert before.space.levels == 256
    train, valid, test = rows_of(before)
    assert (len(train), len(valid), len(test)) == (34, 2, 4)
    assert not train & valid | valid & test | train & test
    Image.open(folder / "0.png").save(folder / "again.png")  # the same pixels, twice
    assert load(config).checksum == before.checksum
    (folder / "0.png").rename(folder / "last.png")
    assert torch.equal(load(config).train, before.train)
    new = np.random.default_rng(99).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(new).save(folder / "new.png")
    moved = [len(a - b) for a, b in zip(rows_of(before), rows_of(load(config)), strict=True)]
    assert sum(moved) <= 3


def test_a_picture_is_its_middle_square_scaled(tmp_path: Path) -> None:
    paint(tmp_path, 12)
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = [[10, 20, 30, 40]] * 4
    Image.fromarray(wide).save(tmp_path / "wide.png")
    data = load(PicturesConfig(folder=str(tmp_path), side=2, colour=False))
    found = torch.cat([data.train, data.valid, data.test])
    assert bool((found == torch.tensor([[15, 35], [15, 35]])).flatten(1).all(1).any())


def test_a_folder_is_read_by_one_rule_and_what_is_left_out_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PicturesConfig(folder=str(folder), side=4)
    before = load(config)
    assert before.notes == ()
    pixels = np.random.default_rng(50).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "more.webp", lossless=True)
    Image.fromarray(255 - pixels).save(folder / "again.GIF")
    frames = [Image.fromarray(pixels), Image.fromarray(pixels[::-1])]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    Image.new("I;16", (4, 4)).save(folder / "deep.png")
    for name in ("._more.png", "torn.png", "notes.txt"):
        (folder / name).write_bytes(b"\0")
    clear = np.dstack([pixels, np.zeros((4, 4), np.uint8)])  # its colours are hidden
    clear[:2, :, 3] = 255
    Image.fromarray(clear).save(folder / "clear.png")
    after = load(config)
    rows = torch.cat([after.train, after.valid, after.test])
    assert len(rows) == len(before.train) + len(before.valid) + len(before.test) + 3
    seen = [torch.from_numpy(np.array(x)).movedim(-1, 0) for x in (pixels, clear[..., :3])]
    seen[1][:, 2:] = 255
    for picture in seen:
        assert bool((rows == picture).flatten(1).all(1).any())
    monkeypatch.chdir(folder.parent)
    assert main(["train", "photographs", "--side", "4", "--plan"]) == 0
    told = capsys.readouterr().out
    assert "5 files skipped: 1 hidden (._more.png); 1 neither a picture nor a table" in told
    assert "1 unreadable: it is animated, or holds 2 pictures: save one of them (moves.gif)" in told
    assert "more than 8 bits a channel: save it in 8 (deep.png)" in told
    assert "1 pictures are transparent in parts: these are put on white" in told


def test_a_photograph_is_upright(tmp_path: Path) -> None:
    paint(tmp_path, 12)
    lying = np.zeros((4, 4), np.uint8)
    lying[:, 0] = 255  # on its side, a light left edge
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(tmp_path / "phone.png", exif=exif)
    data = load(PicturesConfig(folder=str(tmp_path), side=4, colour=False))
    rows = torch.cat([data.train, data.valid, data.test])
    upright = torch.zeros(4, 4, dtype=torch.uint8)
    upright[0] = 255
    assert bool((rows[:, 0] == upright).flatten(1).all(1).any())
    assert not bool((rows[:, 0] == torch.from_numpy(lying)).flatten(1).all(1).any())


def test_the_names_of_columns_are_kept(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 2))
    lines = "\n".join(f"{a!r};{b!r}" for a, b in rows.tolist())
    path = tmp_path / "rows.csv"
    path.write_text(f"\ufeffwidth;height\n{lines}\n")
    dataset = load(TableConfig(file=str(path), reals=True))
    assert dataset.space.names == ("width", "height")
    assert dataset.notes == ()
    path.write_text(f"\ufeff{lines}\n")
    bare = load(TableConfig(file=str(path)))
    assert bare.space.names is None
    assert bare.checksum == dataset.checksum  # no row was taken for a heading
    path.write_text("2019,2020,2021\n" + "".join(f"{i},{i * i},{-i}\n" for i in range(60)))
    assert "the first line (2019, 2020, 2021, ...)" in load(TableConfig(file=str(path))).notes[0]


@pytest.mark.parametrize("ending", [".csv", ".npy", ".npz"])
def test_a_table_is_read_shuffled_and_standardised(tmp_path: Path, ending: str) -> None:
    rows = np.random.default_rng(0).normal([5, -1], [2, 0.1], size=(200, 2)).astype(np.float32)
    path = tmp_path / f"rows{ending}"
    if ending == ".npy":
        np.save(path, rows)
    elif ending == ".npz":
        np.savez(path, rows)
    else:
        path.write_text("a,b\n" + "\n".join(f"{a!r},{b!r}" for a, b in rows.tolist()))
    dataset = load(TableConfig(file=str(path), reals=True))
    train, valid, test = rows_of(dataset)
    assert (len(train), len(valid), len(test)) == (170, 10, 20)
    assert train | valid | test == {row.tobytes() for row in rows}
    model_units = dataset.space.to_model(dataset.train).double()
    assert torch.allclose(model_units.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(model_units.std(0), torch.ones(2, dtype=torch.float64), atol=1e-5)
    other = load(TableConfig(file=str(path), reals=True, seed=1))
    assert other.checksum == dataset.checksum
    assert not torch.equal(other.train, dataset.train)


def test_a_table_of_zeros_and_ones_is_bits(tmp_path: Path) -> None:
    np.save(tmp_path / "bits.npy", np.random.default_rng(0).integers(0, 2, (60, 5)))
    assert load(TableConfig(file=str(tmp_path / "bits.npy"))).space.kind == "bits"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1,2\n" * 10, "at least 50"),
        ("1,2\n" * 60 + "1,x\n", "row 60, column 1: 'x' is no number, and most"),
        ("1,2\n" * 60 + "1\n", "row 60"),
        ("1,2\n" * 60 + "1,\n", "no column is left to model: 0: left out, as its values are all"),
        ("", "is empty"),
        ("a,b\n" + "1,2\n" * 60 + "1,inf\n", "row 60, column b: 'inf' is no number"),
    ],
)
def test_a_table_that_cannot_be_fitted_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=told):
        load(TableConfig(file=str(path)))


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "few", 3)
    with pytest.raises(DataError, match="at least 10"):
        own.configure(tmp_path / "few", None)
    paint(tmp_path / "torn", 12)
    for i in range(12):
        (tmp_path / "torn" / ("below" if i % 2 else ".") / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"holds 0 different pictures.*12 unreadable.*0\.png"):
        own.configure(tmp_path / "torn", None)
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "a.npy", np.zeros((60, 2)))
    with pytest.raises(DataError, match=r"to fit to a table, name it \(.*a\.npy\)"):
        own.configure(tmp_path / "rows", None)
    with pytest.raises(ConfigError, match="neither a folder"):
        own.configure(tmp_path / "nowhere", None)
    with pytest.raises(ConfigError, match="name of a model"):
        own.configure(tmp_path / "few", "../above")


@pytest.mark.parametrize("side", [4, 6, 7, 8, 32])
def test_every_configuration_is_one_and_survives_its_file(folder: Path, side: int) -> None:
    keys, dataset = own.configure(folder, "Photographs", side=side)
    text = own.to_toml(keys)
    assert tomllib.loads(text) == keys
    config = FitConfig.model_validate(tomllib.loads(text))
    model = build_model(config, dataset)
    x_t = dataset.space.to_model(dataset.train[:2])
    assert model.predict(x_t, torch.tensor([1, 1000])).x_0.shape == (2, 3, side, side)


def test_the_plan_is_told_and_nothing_is_fitted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(["train", "photographs", "--side", "8", "--grey", "--plan"]) == 0
    told = capsys.readouterr().out
    assert "30 to fit, 6 to look at meanwhile, 4 to report" in told
    assert "1406 steps of 64" in told  # 3000 times through the data
    assert "to fit, " in told
    assert "to measure and draw" in told
    assert [path.name for path in Path("runs").iterdir()] == ["photographs.toml"]


@pytest.mark.parametrize("kind", ["vector", "bits"])
def test_a_table_becomes_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "T", dict.fromkeys(own.T, 20))
    generator = np.random.default_rng(0)
    normal = generator.normal([5, -1, 0], [2, 0.1, 1], size=(200, 3))
    rows = normal if kind == "vector" else generator.integers(0, 2, (200, 3))
    np.savetxt("rows.csv", rows, delimiter=",", header="a,b,c")
    words = ["train", "rows.csv", "--steps", "3", "--no-evaluation", "--device", "cpu"]
    assert main([*words, "--reals"]) == 0
    model, metadata = load_artefact(Path("models/rows/model.safetensors"), "cpu")
    assert metadata.name == "rows"
    assert (model.space.kind, model.space.shape) == (kind, (3,))
    assert model.space.names == ("a", "b", "c")
    assert metadata.training.steps == 3
    estimate = model.predict(torch.zeros(2, 3), torch.tensor([1, model.T])).x_0
    assert bool(torch.isfinite(estimate).all())


@pytest.mark.parametrize(("rows", "words"), [(4600, "certified on held-out"), (300, "too few")])
def test_posteriors_of_a_table_are_certified_if_there_are_rows_enough(
    tmp_path: Path, rows: int, words: str
) -> None:
    dice = np.random.default_rng(1)
    np.save(tmp_path / "pairs.npy", dice.normal(size=(rows, 4)) + dice.normal(size=(rows, 1)))
    written, config, dataset = own.prepare(tmp_path / "pairs.npy", None, tmp_path / "runs", steps=1)
    out = written.with_suffix("")
    Fit(config, RunOptions(out), Ranks(0, 1, torch.device("cpu")), dataset).run()
    model, metadata, _ = export.from_checkpoint(out, torch.device("cpu"))
    assert model.conditional
    assert [family.kind for family in metadata.told] == ["exact", "noisy"]
    path = tmp_path / "models" / "pairs" / "model.safetensors"
    path.parent.mkdir(parents=True)
    save(path, model, metadata)
    assert words in export.certify(path, "pairs", dataset, out / "calibrate", draws=9)
    found, _ = load_artefact(path)
    seen = Observation.of_reals(torch.zeros(1, 4), torch.tensor([[True, False, True, False]]))
    assert found.certified_for(seen) == (rows == 4600)
    assert Auto().resolve(found, seen).name == ("learned" if rows == 4600 else "twisted")


def test_a_model_of_pictures_is_told_all_patterns(folder: Path) -> None:
    keys, _ = own.configure(folder, None, side=8)
    config = FitConfig.model_validate(keys)
    assert getattr(config.network, "conditional", False)
    assert config.observations is not None
    exact, noisy = config.observations.families
    assert exact.patterns == noisy.patterns == ("scattered", "half", "box", "blobs")


def test_badly_scaled_columns_are_fitted_in_their_own_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unix times of spread 50, which float32 rounds to multiples of 128, beside billionths."""
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    times = 1.7e9 + 50 * dice.standard_normal(400)
    rows = np.column_stack([times, 1e-9 * (3 + (times - 1.7e9) / 50)])
    np.savetxt("log.csv", rows, delimiter=",", header="time,current", comments="", fmt="%.17g")
    dataset = load(TableConfig(file="log.csv", reals=True))
    assert dataset.train.dtype == torch.float64
    found = torch.cat([dataset.train, dataset.valid, dataset.test]).numpy()
    assert np.array_equal(np.sort(found, axis=0), np.sort(rows, axis=0))
    z = dataset.space.to_model(dataset.train)
    assert torch.allclose(z.std(0), torch.ones(2), atol=1e-3)
    assert main(["train", "log.csv", "--reals", "--steps", "2", "--no-evaluation"]) == 0
    model, metadata = load_artefact(Path("models/log/model.safetensors"))
    assert metadata.space.dtype == torch.float64
    drawn = metadata.space.to_data(sample(model, 200, seed=0, sampler=Ancestral(steps=50)))
    assert abs(float(drawn[:, 0].mean()) - times.mean()) < 4 * 50 / 200**0.5
    assert abs(float(drawn[:, 0].std()) - 50) < 4 * 50 / 400**0.5
    assert len(drawn[:, 0].unique()) == 200
    # Both columns tell the same: the current follows from the time.
    ahead = drawn[:, 1] * 1e9 - 3 - (drawn[:, 0] - 1.7e9) / 50
    assert float(ahead.std()) < 0.05


def test_ordinary_columns_stay_in_float32(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(90, 1, (60, 2)))
    dataset = load(TableConfig(file=str(tmp_path / "rows.npy")))
    assert dataset.train.dtype == torch.float32
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (np.full(100, 0.1), "column 1 is the same in every row, which"),
        (np.r_[0.5, np.full(99, 0.1)], "column 1 is the same in every row but 1"),
        (1.7e9 + 1e-2 * np.arange(100), None),
        (1e15 + np.arange(100) / 8, "column 1 lies 2.8e+14 times its spread from 0"),
    ],
)
def test_a_column_that_no_model_can_be_of_is_refused_by_its_place(
    tmp_path: Path, column: np.ndarray, told: str | None
) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.column_stack([np.random.default_rng(0).normal(size=100), column]))
    config = TableConfig(file=str(path), seed=1)  # row 0 is held out
    if told is None:
        assert load(config).space.dtype == torch.float64
        return
    with pytest.raises(DataError, match=re.escape(told)):
        load(config)


def test_copies_and_columns_of_few_values_are_told(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    rows = np.column_stack([dice.normal(size=200), dice.integers(0, 3, 200)])
    np.save(tmp_path / "rows.npy", np.vstack([rows, rows[:50]]))
    copies, discrete = load(TableConfig(file=str(tmp_path / "rows.npy"))).notes
    assert copies.startswith("50 of 250 rows are copies of others")
    assert discrete.startswith("few different values in column 1:")
