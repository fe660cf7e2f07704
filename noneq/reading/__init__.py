"""One reader of users' files, with one set of rules: pictures, tables, arrays and folders of these.

The command and the client, training and the service all read with it, so that a file means the same
to each of them. It needs numpy, Pillow for pictures alone, and nothing of the rest of the project
but its errors. docs/data.md states the rules.
"""

from noneq.reading.data import Block, find, read, read_all, read_mask, read_table, read_whole
from noneq.reading.folders import told

__all__ = [
    "Block",
    "find",
    "read",
    "read_all",
    "read_mask",
    "read_table",
    "read_whole",
    "told",
]
