"""Pre-train M2D-AS: M2D-X whose offline task is AudioSet tagging; the published name of `m2d train as`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.train.distributed.launch import exit_process
from m2d.train.pretrain import main
from m2d.train.programs import M2D_AS

if __name__ == "__main__":
    exit_process(main(M2D_AS))
