"""The training programs that learn from audio alone: M2D and M2D-X, MAE and MSM-MAE."""

from .program import Recipe, open_audio
from .reconstruction_plots import draw_samples

M2D = Recipe(
    prog="train_audio.py",
    description="Pre-train M2D, or M2D-X with --teacher, on unlabelled audio (log-mel spectrograms made by wav_to_lms.py).",
    families=("m2d", "m2d_d2v", "m2d_x"),
    open_data=open_audio,
)

MAE = Recipe(
    prog="mae_train_audio.py",
    description="Pre-train MAE or MSM-MAE on unlabelled audio (log-mel spectrograms made by wav_to_lms.py).",
    families=("msm_mae", "mae"),
    open_data=open_audio,
    defaults=dict(
        model="msm_mae_vit_base",
        epochs=200,
        save_freq=50,
        input_size="80x208",
        mask_ratio=0.75,
        norm_pix_loss=False,
        num_workers=10,
    ),
    without=(
        "no_norm_pix_loss",
        "weighted",
        "teacher",
        "swap_inputs",
        "csv_bg_noise",
        "noise_ratio",
        "loss_fn",
        "loss_m2d",
        "loss_off",
        "ema_decay_init",
        "ema_decay",
        "target_layers",
        "fsdp",
    ),
    name_defaults=dict(effective_batch=512),
    name_has_rate=False,
    name_has_epochs=False,
    at_checkpoint=draw_samples,
)
