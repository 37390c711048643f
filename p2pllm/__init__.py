"""p2pllm: several machines, one language model, no master."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("p2pllm")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
