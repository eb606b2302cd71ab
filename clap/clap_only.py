"""Train M2D-CLAP's text encoder and projector, stages 2 and 2.1; the published name of `m2d train clap-only`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.train.distributed.launch import exit_process
from m2d.train.pretrain import main
from m2d.train.programs import CLAP_ONLY

if __name__ == "__main__":
    exit_process(main(CLAP_ONLY))
