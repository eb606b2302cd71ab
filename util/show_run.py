"""Published name of m2d.cli.report: `python -m util.show_run` or `python util/show_run.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.cli.report import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
