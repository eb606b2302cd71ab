"""Pre-train M2D or M2D-X on unlabelled audio: the published name of `m2d train`."""

from m2d.train.distributed import leave
from m2d.train.pretrain import main
from m2d.train.recipes import M2D as RECIPE

if __name__ == "__main__":
    leave(main(RECIPE))
