"""Published name of m2d.cli.check: `python -m util.check_data` or `python util/check_data.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.cli.check import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
