"""Checks the chunks of a PNG before anything is decoded.

Only checked data are decoded: the file that `checked` returns has one header, rows that match it
exactly, transparency and orientation, and nothing else.

Source: Portable Network Graphics Specification, third edition (W3C, 2025), sections 5, 9 to 11.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from noneq.errors import FileError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"PLTE", b"tRNS", b"eXIf")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
#: First column, first row, and the steps between them, of the seven passes of Adam7.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_MOST_CHUNKS = 100_000
_PIECE = 1 << 16  # bytes decompressed at once


class Header(NamedTuple):
    """The fields of the IHDR chunk."""

    width: int
    height: int
    depth: int
    colour: int
    compression: int
    filtering: int
    interlaced: int


def header(raw: bytes) -> Header:
    """Read the header of a PNG; raise FileError if it is missing or not allowed."""
    if len(raw) < 33 or raw[8:16] != b"\x00\x00\x00\rIHDR":
        raise FileError("it is damaged (a PNG begins with its header)")
    found = Header(*struct.unpack(">IIBBBBB", raw[16:29]))
    allowed = found.depth in _DEPTHS.get(found.colour, ()) and found.interlaced in (0, 1)
    if not allowed or not found.width or not found.height or found.compression or found.filtering:
        raise FileError("it is damaged (its header is not a PNG header)")
    return found


def checked(raw: bytes) -> bytes:
    """Check a PNG, and reduce it to the chunks that it needs.

    Pixels are decompressed in small pieces that are not kept.

    Raises:
        FileError: the file is cut short, damaged or animated, or has two headers.
    """
    head = header(raw)
    kept: list[bytes] = []
    data: list[bytes] = []
    for name, body in _chunks(raw):
        if name == b"IHDR" and (kept or data):
            raise FileError("it is damaged (more than one header, IHDR)")
        if name == b"acTL" and body[:4] > b"\x00\x00\x00\x01":
            raise FileError("it is animated: save one of its frames")
        if name == b"IDAT":
            data.append(body)
        elif name in _KEPT or name == b"IHDR":
            kept.append(_chunk(name, body))
        elif not name[0] & 0x20 and name != b"IEND":  # a capital letter: readers must not ignore it
            raise FileError(f"it has a chunk that no reader knows ({_word(name)})")
    _check_rows(head, data)
    return b"".join([SIGNATURE, *kept, _chunk(b"IDAT", b"".join(data)), _chunk(b"IEND", b"")])


def _chunks(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        length = int.from_bytes(raw[place : place + 4], "big")
        end = place + 12 + length
        if end > len(raw):
            raise FileError("it is cut short (the file ends before the picture does)")
        named = raw[place + 4 : end - 4]
        if zlib.crc32(named) != int.from_bytes(raw[end - 4 : end], "big"):
            raise FileError(f"it is damaged (wrong checksum, CRC, of its chunk {_word(named[:4])})")
        yield named[:4], named[4:]
        if named[:4] == b"IEND":
            return
        place = end
    raise FileError(f"it has more than {_MOST_CHUNKS} chunks")


def _word(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")


def _chunk(name: bytes, body: bytes) -> bytes:
    named = name + body
    return len(body).to_bytes(4, "big") + named + zlib.crc32(named).to_bytes(4, "big")


def _check_rows(head: Header, data: list[bytes]) -> None:
    """Raise FileError unless the data hold exactly the rows of the header."""
    wanted = _bytes(head)
    try:
        count, whole = _inflated(data, wanted)
    except zlib.error as error:
        raise FileError(f"it is damaged (its pixels cannot be inflated, {error})") from None
    if count > wanted:
        raise FileError("it is damaged (more pixels than its header says)")
    if count < wanted:
        there = head.height * count // wanted
        raise FileError(f"it is cut short ({there} of {head.height} rows are there)")
    if not whole:
        raise FileError("it is cut short (the checksum of its pixels is missing)")


def _inflated(data: list[bytes], most: int) -> tuple[int, bool]:
    """Count the bytes of pixels, to just above `most`; return the count and whether they end."""
    stream, count = zlib.decompressobj(), 0
    for body in data:
        for start in range(0, len(body), _PIECE):
            rest = body[start : start + _PIECE]
            while rest and not stream.eof and count <= most:
                count += len(stream.decompress(rest, _PIECE))
                rest = stream.unconsumed_tail
    if not stream.eof and count <= most:
        count += len(stream.flush())
    return count, stream.eof


def _bytes(head: Header) -> int:
    """Return the number of bytes of all rows, each with one byte for its filter."""
    bits = head.depth * _CHANNELS[head.colour]
    total = 0
    for x, y, across, down in _PASSES if head.interlaced else ((0, 0, 1, 1),):
        width, height = -(-(head.width - x) // across), -(-(head.height - y) // down)
        if width > 0:
            total += max(0, height) * (1 + (width * bits + 7) // 8)
    return total
