"""How many rows memory allows at once: found by running out of it, and by trying again later."""

from typing import Final, final

_PATIENCE: Final = 100  # full network calls that go well before more rows are tried


@final
class Allowance:
    """Most rows of a tick now: fewer once memory ran out, by and by as many as before.

    Args:
        most: rows while memory lasts.

    Attributes:
        rows: of a tick now.
    """

    def __init__(self, most: int) -> None:
        self.rows = self._most = most
        self._good = 0

    def shrink(self, rows: int) -> None:
        """Memory held so many and no more."""
        self.rows, self._good = rows, 0

    def grow(self, rows: int, calls: int) -> bool:
        """So many network calls of so many rows went well; whether more rows may be tried."""
        if self.rows == self._most or rows < self.rows:
            return False
        self._good += calls
        if self._good < _PATIENCE:
            return False
        self.rows, self._good = min(2 * self.rows, self._most), 0
        return True
