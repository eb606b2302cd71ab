"""Pre-train M2D or M2D-X on unlabelled audio: the published name of `m2d train`."""

from m2d.train.distributed.launch import exit_process
from m2d.train.pretrain import main
from m2d.train.programs import M2D

if __name__ == "__main__":
    exit_process(main(M2D))
