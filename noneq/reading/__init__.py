"""Reads users' files (pictures, tables, arrays, and folders of them) by one set of rules.

The command, the client, training and the service all use it, so that a file means the same to each
of them. It needs numpy, Pillow only for pictures, and from the rest of the project only the errors
and the description of a model. docs/data.md states the rules.
"""

from noneq.reading.data import Block, find, read, read_all, read_mask, read_table, read_whole
from noneq.reading.folders import describe_skipped

__all__ = [
    "Block",
    "describe_skipped",
    "find",
    "read",
    "read_all",
    "read_mask",
    "read_table",
    "read_whole",
]
