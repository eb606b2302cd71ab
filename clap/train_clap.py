"""Pre-train M2D-CLAP, stage 1: M2D beside the agreement of clips with captions; the published name of `m2d train clap`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.train.distributed.launch import exit_process
from m2d.train.pretrain import main
from m2d.train.programs import M2D_CLAP

if __name__ == "__main__":
    exit_process(main(M2D_CLAP))
