"""Run the `noneq` command: `python -m noneq`."""

import sys

from noneq.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
