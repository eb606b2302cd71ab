"""Pre-train MAE or MSM-MAE, which reconstruct the hidden patches: the published name of `m2d train mae`."""

from m2d.train.distributed.launch import exit_process
from m2d.train.pretrain import main
from m2d.train.programs import MAE

if __name__ == "__main__":
    exit_process(main(MAE))
