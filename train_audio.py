"""Pre-train M2D or M2D-X on unlabelled audio."""

from m2d.train.distributed import leave
from m2d.train.pretrain import main
from m2d.train.program import Recipe, open_audio

RECIPE = Recipe(
    prog="train_audio.py",
    description="Pre-train M2D, or M2D-X with --teacher, on unlabelled audio (log-mel spectrograms made by wav_to_lms.py).",
    families=("m2d", "m2d_d2v", "m2d_x"),
    open_data=open_audio,
)

if __name__ == "__main__":
    leave(main(RECIPE))
