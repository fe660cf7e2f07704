"""`from noneq import Client`: the client under the project's name; `python -m noneq`: the command.

The code is in client/, beside the other parts of the house and under its own name, so that a
checkout, an editable install and a wheel all import the same without a mapping of folders.
"""

from client import *
from client import __all__ as __all__

if __name__ == "__main__":
    import sys

    from client.command.main import main

    sys.exit(main())
