"""Published name of m2d.cli.profile: `python -m util.profile_step` or `python util/profile_step.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.cli.profile import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
