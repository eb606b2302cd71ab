"""Pre-train MAE or MSM-MAE, which reconstruct the hidden patches: the published name of `m2d train mae`."""

from m2d.train.distributed import leave
from m2d.train.pretrain import main
from m2d.train.recipes import MAE as RECIPE

if __name__ == "__main__":
    leave(main(RECIPE))
