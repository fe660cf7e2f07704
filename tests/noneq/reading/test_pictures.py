"""Pictures: as a viewer shows them, whole, or refused with the reason."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from noneq import FileError, reading
from noneq.models import Model
from noneq.reading import pictures, png
from noneq.reading.pictures import decode

DICE = np.random.default_rng(0)
COLOUR = DICE.integers(0, 256, (6, 8, 3), dtype=np.uint8)
ALPHA = np.full((6, 8), 255, np.uint8)
ALPHA[0, :4], ALPHA[1, :4] = 0, [1, 100, 254, 255]


def encoded(image: Image.Image, form: str = "PNG", **settings: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **settings)
    return out.getvalue()


def made(
    size: tuple[int, int], pixels: bytes, *between: bytes, depth: int = 8, kind: int = 0
) -> bytes:
    """A PNG as it is put together, right or wrong."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    return b"".join([png.SIGNATURE, head, *between, chunk(b"IDAT", pixels), chunk(b"IEND", b"")])


def chunk(name: bytes, body: bytes) -> bytes:
    named = name + body
    return struct.pack(">I", len(body)) + named + struct.pack(">I", zlib.crc32(named))


ROWS = zlib.compress(bytes(29) * 28)  # of 28 x 28 grey pixels
TWO_HEADERS = made(
    (28, 28), ROWS, chunk(b"IHDR", struct.pack(">IIBBBBB", 13300, 13300, 8, 0, 0, 0, 0))
)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_a_viewer_turns_it(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(Image.fromarray(COLOUR), form, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB"))
    assert np.array_equal(decode(raw).levels, upright)
    assert (upright.shape == (8, 6, 3)) == (orientation > 4)
    size = (upright.shape[1], upright.shape[0])
    assert decode(raw, size).levels.shape == upright.shape
    with pytest.raises(FileError, match="expected"):  # its size is that of what is seen
        decode(raw, size[::-1])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "PA", "RGBA"])
def test_every_kind_of_pixel_is_read_as_it_looks(mode: str) -> None:
    picture = Image.fromarray(COLOUR).convert("RGB" if mode == "PA" else mode.rstrip("A"))
    picture = picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)
    found = decode(encoded(picture, "TIFF" if mode == "PA" else "PNG"))
    assert np.array_equal(found.channels(3).transpose(1, 2, 0), np.asarray(picture.convert("RGB")))
    assert found.opaque.all()


def test_an_interlaced_picture_is_as_long_as_its_passes() -> None:
    for height, width in ((1, 1), (5, 3), (8, 8), (9, 17), (4, 1)):
        # Seven passes of zeros, as the specification parts them.
        lengths = []
        for y, x, down, across in (
            (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
            (1, 0, 2, 1),
        ):  # fmt: skip
            rows, columns = len(range(y, height, down)), len(range(x, width, across))
            lengths.append(rows * (1 + columns) if columns else 0)
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1))
        for extra in (0, -1, 1):
            data = chunk(b"IDAT", zlib.compress(bytes(sum(lengths) + extra)))
            raw = png.SIGNATURE + head + data + chunk(b"IEND", b"")
            if extra:
                with pytest.raises(FileError):
                    decode(raw)
            else:
                assert not decode(raw).levels.any()


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (made((28, 28), zlib.compress(bytes(29) * 5)), "cut short .5 of 28 rows are there"),
        (made((28, 28), ROWS[:-4]), "cut short"),
        (made((28, 28), zlib.compress(bytes(29 * 28 + 1))), "more pixels than its header says"),
        (made((28, 28), zlib.compress(bytes(10**8))), "more pixels than its header says"),
        (made((28, 28), b"no zlib"), "cannot be inflated"),
        (made((28, 28), ROWS)[:-12], "the file ends before the picture does"),
        (made((28, 28), ROWS)[:60], "the file ends before the picture does"),
        (made((28, 28), ROWS).replace(ROWS[-4:], bytes(4)), "wrong checksum, CRC, .* IDAT"),
        (TWO_HEADERS, "more than one header"),
        (made((100_000, 100_000), ROWS), "more than 80,000,000"),
        (made((28, 28), ROWS, depth=3), "header"),
        (made((0, 28), ROWS), "header"),
        (made((28, 28), ROWS, chunk(b"ABCD", b"")), "no reader knows .ABCD"),
        (made((28, 28), ROWS, chunk(b"acTL", struct.pack(">II", 2, 0))), "animated"),
        (made((2, 2), zlib.compress(bytes(26)), depth=16, kind=2), "more than 8 bits"),
        (made((2, 2), zlib.compress(bytes(10)), depth=16), "more than 8 bits"),
        (b"P6 2 2 65535\n" + bytes(24), "more than 8 bits"),
        (b"P5 2 2 1023\n" + bytes(8), "more than 8 bits"),
        (b"P3 1 1 65535\n1 2 3\n", "more than 8 bits"),
        (b"P5 20 20 255\n" + bytes(9), "cut short"),
        (encoded(Image.new("I;16", (4, 4)), "TIFF"), "more than 8 bits"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "more than 8 bits"),
        (encoded(Image.new("CMYK", (4, 4)), "JPEG"), "colours are CMYK: save it in RGB"),
        (encoded(Image.new("LAB", (4, 4)), "TIFF"), "colours are LAB"),
        (encoded(Image.new("RGB", (400, 400), "red"), "JPEG")[:900], "cut short"),
        (encoded(Image.new("L", (4, 4)), "ICO"), "it is no PNG or JPEG"),
        (b"", "it is no PNG or JPEG"),
        (b"<svg/>", "it is no PNG or JPEG"),
    ],
)  # fmt: skip
def test_what_is_not_whole_or_not_eight_bits_is_refused(raw: bytes, told: str) -> None:
    with pytest.raises(FileError, match=told):
        decode(raw)


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "TIFF"])
def test_what_moves_is_refused_and_what_stands_is_read(form: str) -> None:
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    with pytest.raises(FileError, match="animated"):
        decode(encoded(first, form, save_all=True, append_images=[second]))
    still = encoded(first, form)
    assert np.array_equal(decode(still).levels, Image.open(io.BytesIO(still)).convert("RGB"))


def test_a_preview_beside_a_photograph_is_left_alone() -> None:
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    raw = encoded(first, "MPO", save_all=True, append_images=[second])
    assert np.array_equal(decode(raw).levels, decode(encoded(first, "JPEG")).levels)


def test_any_damage_is_a_sentence() -> None:
    """A thousand files with some of their bytes changed: no error but a FileError."""
    picture = Image.fromarray(np.dstack([COLOUR, ALPHA]))
    forms = ("PNG", "GIF", "WEBP", "TIFF", "BMP")
    files = [encoded(picture, form) for form in forms] + [encoded(picture.convert("RGB"), "JPEG")]
    read = 0
    for i in range(1000):
        raw = np.frombuffer(files[i % len(files)], np.uint8).copy()
        raw[DICE.integers(0, len(raw), 3)] = DICE.integers(0, 256, 3)
        try:
            read += decode(raw.tobytes()).levels.ndim > 1
        except FileError:
            continue
    assert read > 0


def test_transparency_by_alpha_by_palette_and_by_colour() -> None:
    picture = Image.fromarray(COLOUR)
    palette = picture.quantize(16)
    first = np.asarray(palette) == 3
    cases = [
        (encoded(Image.fromarray(np.dstack([COLOUR, ALPHA]))), ALPHA),
        (encoded(Image.fromarray(np.dstack([COLOUR[..., 0], ALPHA]))), ALPHA),
        (encoded(palette, transparency=3), np.where(first, 0, 255)),
        (encoded(palette, "GIF", transparency=3), np.where(first, 0, 255)),
        (encoded(palette, transparency=bytes([255, 255, 255, 7])), np.where(first, 7, 255)),
        (
            encoded(picture, transparency=tuple(COLOUR[2, 2].tolist())),
            np.where((COLOUR[2, 2] == COLOUR).all(-1), 0, 255),
        ),
    ]
    for raw, alpha in cases:
        found = decode(raw)
        assert np.array_equal(found.alpha, alpha)
        assert np.array_equal(found.opaque, alpha == 255)  # seen in part is not seen
    assert decode(encoded(Image.fromarray(np.dstack([COLOUR, 0 * ALPHA + 255])))).alpha is None


def test_what_is_transparent_is_put_on_white() -> None:
    raw = encoded(Image.fromarray(np.dstack([COLOUR, ALPHA])))
    share = ALPHA[..., None] / 255.0
    mixed = np.rint(COLOUR * share + 255 * (1 - share))
    assert np.array_equal(decode(raw).on_white().levels, mixed)
    assert decode(raw).on_white().opaque.all()


def test_grey_is_pillows_luma() -> None:
    found = decode(encoded(Image.fromarray(COLOUR)))
    assert np.array_equal(found.grey(), np.asarray(Image.fromarray(COLOUR).convert("L")))


GREY = Model("grey", "image", (1, 6, 8), "gaussian", 8, "unet", 1, ())
RGB = Model("colour", "image", (3, 6, 8), "gaussian", 8, "unet", 1, ())
BITS = Model("bits", "bits", (1, 6, 8), "binomial", 8, "mlp", 1, ())


def test_a_file_becomes_data_of_a_model(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.dstack([COLOUR, ALPHA])).save(path)
    values, known = reading.read_all([path], RGB)
    assert np.array_equal(values[0], COLOUR.transpose(2, 0, 1))
    assert np.array_equal(known[0], [ALPHA == 255] * 3)
    with pytest.raises(FileError, match=r"a\.png: it is in colour"):
        reading.read_all([path], GREY)
    with pytest.raises(FileError, match=r"a\.png: example 0 .* is transparent at \[0, 0, 0\]"):
        reading.read_whole([path], RGB)
    grey = np.dstack([COLOUR[..., :1].repeat(3, -1), ALPHA])
    grey[0, :4] = DICE.integers(0, 256, (4, 4))
    grey[0, :4, 3] = 0  # a colour that nobody sees
    Image.fromarray(grey).save(path)
    values, known = reading.read_all([path], GREY)
    assert np.array_equal(values[known], COLOUR[..., 0][ALPHA == 255])
    with pytest.raises(FileError, match=r"a\.png: it has greys"):
        reading.read_all([path], BITS)
    small = Model("small", "image", (1, 4, 4), "gaussian", 8, "unet", 1, ())
    with pytest.raises(FileError, match=r"8 x 6 pixels .* expected 4 x 4"):
        reading.read_all([path], small)
    with pytest.raises(FileError, match="which no picture holds"):
        reading.read_all([path], Model("v", "vector", (48,), "gaussian", 8, "mlp", 1, ()))


def test_a_mask_is_white_and_opaque(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    black, white = np.zeros((6, 8, 3), np.uint8), np.full((6, 8, 3), 255, np.uint8)
    black[2:] = 255
    for colours, alpha, known in (
        (white, ALPHA, ALPHA == 255),  # what the paint program erased
        (black, ALPHA, (ALPHA == 255) & (black[..., 0] > 0)),
        (black, 0 * ALPHA + 255, black[..., 0] > 0),
    ):
        Image.fromarray(np.dstack([colours, alpha])).save(path)
        found = reading.read_mask(str(path), RGB)
        assert np.array_equal(found[0], [known] * 3)
    for wrong, told in ((COLOUR, "in colour"), (black // 2, "greys")):
        Image.fromarray(wrong).save(path)
        with pytest.raises(FileError, match=rf"mask\.png: .*{told}"):
            reading.read_mask(str(path), RGB)
    Image.fromarray(white[:5]).save(path)
    with pytest.raises(FileError, match="expected 8 x 6"):
        reading.read_mask(str(path), RGB)


def test_a_format_that_is_not_asked_for_is_not_read() -> None:
    raw = encoded(Image.fromarray(COLOUR), "JPEG")
    with pytest.raises(FileError, match="it is no PNG, or damaged"):
        decode(raw, formats=("PNG",))


def test_the_limit_is_below_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ours is what is told, of a file whose header is none of PNG's too."""
    assert Image.MAX_IMAGE_PIXELS is not None
    assert pictures.MOST_PIXELS <= Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(pictures, "MOST_PIXELS", 40)
    for form in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"):
        with pytest.raises(FileError, match="8 x 6 pixels, more than 40"):
            decode(encoded(Image.fromarray(COLOUR), form))


@pytest.mark.parametrize("read", [pictures.read, lambda path: reading.read_all([path], RGB)])
def test_what_cannot_be_opened_is_said(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(FileError, match=r"nowhere\.png"):
        read(tmp_path / "nowhere.png")
