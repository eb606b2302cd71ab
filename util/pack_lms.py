"""Published name of m2d.cli.pack: `python -m util.pack_lms` or `python util/pack_lms.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.cli.pack import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
