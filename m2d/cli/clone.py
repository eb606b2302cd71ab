"""What is in a clone of the project only, found from wherever m2d is called. Must not import torch."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from ..utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def import_from_clone(module: str) -> ModuleType:
    """A module beside the package m2d.

    Raises:
        UserError: m2d is installed without the clone.
    """
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise UserError(f"{module} is in a clone of the project only: there, pip install -e .") from None
