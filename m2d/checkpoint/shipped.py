"""The encoder that comes with this project: a file in the folder weights/ of a clone, known by its name."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from .errors import CheckpointError

FOLDER = Path(__file__).resolve().parents[2] / "weights"


class Shipped(NamedTuple):
    """A file in FOLDER, its SHA-256, and the licence of its weights."""

    file: str
    sha256: str
    licence: str


#: By the name that every --weights and RuntimeM2D takes.
SHIPPED = {
    "tiny": Shipped(
        "m2d_as_vit_mini-80x96p16x8-free.pth", "d193d0beae78b78c96830996b7a36cd7e63e74108716b4ef978f49854ab0a7ce", "apache-2.0"
    ),
}
DEFAULT = "tiny"


def shipped_file(name: str) -> Path:
    """The file of a name in SHIPPED.

    Raises:
        FileNotFoundError: it is not there, as in an installed wheel.
        CheckpointError: its content is another one.
    """
    file, sha256, _ = SHIPPED[name]
    path = FOLDER / file
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: the encoder {name} comes with a clone of this project, not with the installed package: "
            "--weights names another one"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not {sha256}; git checkout {file} restores it")
    return path
