"""The built-in model: a small Llama that tells little stories, shipped in the package.

So that a swarm can be tried, and the main job tested, with no model hub in reach. Importing this
package imports no torch; :func:`model_path` is all that the rest of the product needs.
"""

from importlib.resources import files
from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """Return the folder of the built-in model: weights, configuration and tokenizer.

    Pass it where a model's name or folder is wanted. The package is installed as plain files,
    never run out of an archive; a missing folder means a broken installation, not a wrong call.
    """
    return Path(str(files(__name__) / "model"))
