"""Published name of m2d.inference.embed: `python -m m2d.embed`."""

import sys

from .inference.embed import main

if __name__ == "__main__":
    sys.exit(main())
