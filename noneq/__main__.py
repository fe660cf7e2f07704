"""`python -m noneq`: the command of that name."""

import sys

from noneq.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
