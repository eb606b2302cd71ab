"""Published name of m2d.cli.export: `python -m util.to_encoder_only_weight` or `python util/to_encoder_only_weight.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.cli.export import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
