"""`python -m m2d`: the command m2d, as torchrun starts it too (`torchrun -m m2d train …`)."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
