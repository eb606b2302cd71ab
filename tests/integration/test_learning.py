"""What the offline tasks learn, on sounds: tags of held-out clips, and clean features of noisy clips."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from small_runs import load, log_lines, run, small_builders

from m2d.models import registry as models_mae
from util.make_sample_audio import write_sample_audio
from wav_to_lms import convert_wav

CLASSES_HELD_OUT = 4  # of 16 clips of each class


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """Ten classes of 16 clips as log-mels, with lists for training and for what is held out."""
    folder = tmp_path_factory.mktemp("sounds")
    write_sample_audio(folder / "audio", clips=16)
    convert_wav(folder / "audio", folder / "data/lms", min_length=None, workers=1, csv=folder / "data/all.csv")
    names = (folder / "data/all.csv").read_text().split()[1:]
    for part, chosen in (("train", slice(CLASSES_HELD_OUT, None)), ("val", slice(0, CLASSES_HELD_OUT))):
        by_class: dict[str, list[str]] = {}
        for name in names:
            by_class.setdefault(Path(name).parent.name, []).append(name)
        rows = [f"{name},{label}" for label, files in by_class.items() for name in files[chosen]]
        (folder / f"data/{part}.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    return folder


@pytest.fixture
def workplace(sounds, monkeypatch) -> Path:
    monkeypatch.chdir(sounds)
    monkeypatch.setattr(models_mae, "BUILDERS", small_builders())
    return sounds


def tagging_map(checkpoint: dict, model: torch.nn.Module, folder: Path) -> float:
    """Mean average precision of the tagging head on the held-out clips."""
    mean, std = checkpoint["stats"][0]
    scores, targets = [], []
    for row in (folder / "data/val.csv").read_text().splitlines()[1:]:
        name, label = row.split(",")
        clip = torch.from_numpy(np.load(folder / "data" / name)[None, :, :, :192])
        with torch.no_grad():
            latent, _, _, ids_restore = model.forward_encoder((clip - mean) / std, mask_ratio=0.0)
            logits = model.forward_offline(latent, latent[:, :0], ids_restore).mean(dim=1)
        scores.append(logits[0].numpy())
        targets.append([label == each for each in checkpoint["classes"]])
    return float(average_precision_score(np.array(targets), np.array(scores), average="macro"))


def test_m2d_as_learns_the_labels(workplace):
    flags = "--data_path data --csv_main data/train.csv --csv_val data/val.csv --input_size 80x192 --batch_size 20 --lr 5e-3"
    flags += " --epochs 24 --warmup_epochs 3 --loss_off 1. --output_dir as --ema_decay_init 0.99 --ema_decay 0.999"
    assert run("audioset.train_as", flags) == 0
    log = log_lines(Path("as"))
    assert log[-1]["val_loss_off"] < 0.8 * log[0]["val_loss_off"]
    checkpoint = load(Path("as/checkpoint-24.pth"))
    model = models_mae.build("m2d_as_vit_tiny", img_size=(80, 192), patch_size=16, decoder_depth=1, off_emb_dim=10).eval()
    untrained = tagging_map(checkpoint, model, workplace)
    model.load_state_dict(checkpoint["model"])
    trained = tagging_map(checkpoint, model, workplace)
    chance = 1 / len(checkpoint["classes"])
    print(f"mAP on held-out clips: {trained:.3f} trained, {untrained:.3f} untrained, {chance:.3f} by chance")
    assert trained > 2.5 * chance and trained > untrained + 0.05


def test_m2d_x_predicts_the_clean_features_of_noisy_clips(workplace):
    """norm_mse is 2 - 2·cosine: the offline loss of the held-out clips, noise mixed in, tells the cosine."""
    common = "--data_path data --csv_main data/train.csv --input_size 80x192 --batch_size 20 --lr 2e-3 --warmup_epochs 2"
    common += " --ema_decay_init 0.99 --ema_decay 0.999"
    assert run("train_audio", f"{common} --epochs 4 --output_dir m2d_vit_tiny-80x192p16x16-teacher") == 0
    flags = f"{common} --csv_val data/val.csv --epochs 16 --model m2d_x_vit_tiny --loss_off 1. --csv_bg_noise data/train.csv"
    flags += " --noise_ratio 0.3 --teacher m2d_vit_tiny-80x192p16x16-teacher/checkpoint-4.pth --output_dir denoising"
    assert run("train_audio", flags) == 0
    cosine = [1 - line["val_loss_off"] / 2 for line in log_lines(Path("denoising"))]
    print("cosine with the clean clips' features, epoch by epoch:", " ".join(f"{value:.3f}" for value in cosine))
    assert cosine[-1] > cosine[0] + 0.1
