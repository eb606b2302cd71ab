"""Published name of m2d.inference.tag: `python -m m2d.tag`."""

import sys

from .inference.tag import main

if __name__ == "__main__":
    sys.exit(main())
