"""The version of noneq that is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("noneq")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0"
