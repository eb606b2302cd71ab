"""Fine-tuning to classify segments of recordings: scores, segments, and runs on small made-up data."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from app_data import prepared_lungs, write_circor
from hypothesis import given
from hypothesis import strategies as st

from app import finetune, segments
from app.scores import main_score, scores, unit_probabilities
from examples.portable_m2d import PortableM2D
from m2d.inference import embed, tag
from m2d.inference.runtime import RuntimeM2D
from m2d.train.optim import learning_rate

WEIGHTS = "m2d_vit_tiny-80x208p80x16p16k-random"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return prepared_lungs(tmp_path_factory.mktemp("lungs"))


@pytest.fixture(scope="module")
def circor(tmp_path_factory) -> Path:
    return write_circor(tmp_path_factory.mktemp("circor"))


def test_lung_scores_worked_by_hand():
    classes = ["both", "crackle", "normal", "wheeze"]
    targets = np.array([2] * 10 + [1] * 4 + [3] * 2 + [0] * 2)
    predicted = np.array([2] * 8 + [1] * 2 + [1, 1, 1, 2] + [3, 1] + [1, 1])
    found = scores(targets, predicted, classes)  # 8 of 10 normal; 3 + 1 + 0 of 8 others
    assert found["specificity"] == 0.8 and found["sensitivity"] == 0.5
    assert found["average_score"] == pytest.approx(0.65) and found["harmonic_score"] == pytest.approx(0.8 / 1.3)
    assert found["score"] == pytest.approx((0.65 + 0.8 / 1.3) / 2)
    assert found["accuracy"] == pytest.approx(12 / 18) and found["uar"] == pytest.approx((0.8 + 0.75 + 0.5 + 0) / 4)
    assert main_score(classes) == "average_score" and "weighted_accuracy" not in found


def test_murmur_scores_worked_by_hand():
    classes = ["Absent", "Present", "Unknown"]
    targets, predicted = np.array([0] * 6 + [1] * 3 + [2] * 2), np.array([0] * 5 + [1] + [1, 1, 0] + [2, 0])
    found = scores(targets, predicted, classes)
    assert found["weighted_accuracy"] == pytest.approx((5 * 2 + 3 * 1 + 5) / (5 * 3 + 3 * 2 + 6))
    assert main_score(classes) == "weighted_accuracy" and "sensitivity" not in found


def test_a_unit_is_judged_by_its_mean_probability():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.6, 0.4]])
    names, mean, targets = unit_probabilities(np.array(["b", "b", "a", "b"]), probabilities, np.array([0, 0, 1, 0]))
    assert names.tolist() == ["a", "b"] and targets.tolist() == [1, 0]
    np.testing.assert_allclose(mean, [[0.1, 0.9], [1.7 / 3, 1.3 / 3]])
    with pytest.raises(ValueError, match="unit b"):
        unit_probabilities(np.array(["b", "b"]), probabilities[:2], np.array([0, 1]))


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1, exclude_max=True))
def test_segments_are_cropped_or_repeated(length, frames, u):
    lms = np.arange(length)[None].repeat(2, 0)
    got = segments.fit(lms, frames, u)
    assert got.shape == (2, frames)
    steps = np.diff(got[0])
    assert ((steps == 1) | (steps == 1 - length)).all()
    if u == 0:
        assert got[0, 0] == 0


def run(listed: Path, out: Path, *flags) -> int:
    base = ["--weights", WEIGHTS, "--output_dir", out, "--dur_frames", 96, "--device", "cpu", "--num_workers", 0, "--lr", "1e-3"]
    return finetune.main([str(each) for each in [listed, *base, "--batch_size", 8, *flags]])


def test_fine_tuning_learns_the_classes(prepared, tmp_path, caplog):
    caplog.set_level("INFO")
    table = pd.read_csv(prepared / "segments.csv")
    table[table["label"].isin(["normal", "wheeze"])].to_csv(tmp_path / "two.csv", index=False)
    flags = ("--data_path", prepared, "--epochs", 12, "--split_iter", 2, "--freeze_embed")
    assert run(tmp_path / "two.csv", tmp_path / "run", *flags) == 0
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == list(range(1, 13)) and log[-1]["loss"] < 0.5 * log[0]["loss"]
    result = pd.read_csv(tmp_path / "run/predictions.csv")
    assert list(result) == ["unit", "label", "predicted", "normal", "wheeze"] and len(result) == 8
    np.testing.assert_allclose(result[["normal", "wheeze"]].sum(axis=1), 1, rtol=1e-5)
    accuracy = (result["label"] == result["predicted"]).mean()
    assert accuracy >= 7 / 8
    assert f"test accuracy {accuracy:.4f}" in caplog.text and "test average_score" in caplog.text


def test_a_saved_classifier_gives_the_same_predictions(prepared, tmp_path):
    assert run(prepared / "segments.csv", tmp_path / "run", "--epochs", 1, "--freeze_embed") == 0
    model = finetune.load_classifier(tmp_path / "run/checkpoint.pth")
    result = pd.read_csv(tmp_path / "run/predictions.csv").set_index("unit")
    table = segments.read_segments(prepared / "segments.csv")
    test = segments.SegmentDataset(table[table["split"] == "test"], prepared, model.classes, 96)
    lms, target, _ = test.crop(5, 0.0)
    with torch.inference_mode():
        probabilities = model(torch.from_numpy(lms)[None, None]).softmax(dim=1)[0].numpy()
    unit = test.table["unit"][5]
    np.testing.assert_allclose(result.loc[unit, model.classes].to_numpy(float), probabilities, rtol=1e-4)
    assert model.classes[target.argmax()] == result.loc[unit, "label"]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        "backbone.pos_embed",
        "backbone.norm_stats",
        "backbone.patch_embed.proj.weight",
        "backbone.patch_embed.proj.bias",
    }
    train = segments.SegmentDataset(table[table["split"] == "train"], prepared, model.classes, 96)
    values = np.concatenate([train.crop(i, 0.0)[0].ravel() for i in range(len(train))])
    np.testing.assert_allclose([model.cfg.mean, model.cfg.std], [values.mean(), values.std()], rtol=1e-4)


@pytest.mark.parametrize("flags", [(), ("--training_mask", 0.3)])
def test_every_program_reads_a_fine_tuned_checkpoint(prepared, tmp_path, flags, capsys):
    """With the names of its classes; --training_mask: a classifier of flat features."""
    assert run(prepared / "segments.csv", tmp_path / "run", "--epochs", 1, *flags) == 0
    path = tmp_path / "run/checkpoint.pth"
    model = finetune.load_classifier(path)
    audio = 0.1 * torch.randn(1, 15_200, generator=torch.Generator().manual_seed(0))  # the model's 96 frames
    with torch.inference_mode():
        expected = model(model.to_feature(audio)).softmax(dim=1)[0]
        for runtime in (RuntimeM2D, PortableM2D):
            logits = runtime(weight_file=path, num_classes=len(model.classes))(audio)
            torch.testing.assert_close(logits.softmax(dim=1)[0], expected, rtol=1e-4, atol=1e-5)
    soundfile.write(tmp_path / "x.wav", audio[0].numpy(), 16000, subtype="FLOAT")
    assert tag.main([str(tmp_path / "x.wav"), "--weights", str(path), "--device", "cpu", "--top", "9"]) == 0
    printed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [name for _, name in printed] == [model.classes[i] for i in expected.argsort(descending=True)]
    np.testing.assert_allclose([float(value) for value, _ in printed], expected.sort(descending=True)[0], atol=1e-3)
    arguments = [str(tmp_path / "x.wav"), "--weights", str(tmp_path / "run"), "--out", str(tmp_path / "e.npz"), "--device", "cpu"]
    assert embed.main(arguments) == 0
    with np.load(tmp_path / "e.npz") as saved:
        assert saved["embeddings"].shape == (1, RuntimeM2D(weight_file=path).cfg.feature_d)


def test_an_output_folder_whose_name_tells_another_length_is_refused_before_training(prepared, tmp_path, caplog):
    out = tmp_path / "m2d_vit_tiny-80x208p80x16-lungs"
    assert run(prepared / "segments.csv", out, "--epochs", 1) == 2
    assert "its name says input_size 80x208, the settings in the file 80x96" in caplog.text and not out.exists()


def tuning(listed, out, *flags):
    """A run on segments, and its segments by split."""
    args = finetune.parse_args(
        [str(listed), *"--weights x --device cpu --num_workers 0".split(), "--output_dir", str(out), *flags]
    )
    table = segments.read_segments(listed)
    torch.manual_seed(0)
    model = finetune.SegmentClassifier(sorted(table["label"].unique()), weight_file=WEIGHTS, dur_frames=96)
    splits = table.groupby("split")
    sets = {split: segments.SegmentDataset(rows, listed.parent, model.classes, 96) for split, rows in splits}
    return finetune.SegmentTuning(args, model, sets), sets


def test_a_batch_in_parts_gives_the_same_update(prepared, tmp_path):
    updated = []
    for parts in ("1", "3"):
        run, _ = tuning(prepared / "segments.csv", tmp_path, "--split_iter", parts, "--batch_size", "10", "--lr", "0.1")
        run.optimizer = torch.optim.SGD([{"params": run.model.parameters(), "scale": 1.0}])
        run._train_epoch(0)
        updated.append(run.model.state_dict())
    for name, tensor in updated[0].items():
        torch.testing.assert_close(tensor, updated[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_with_a_validation_split_the_best_epoch_is_tested(circor, tmp_path, caplog):
    caplog.set_level("INFO")
    flags = ("--epochs", 3, "--warmup_epochs", 1, "--training_mask", 0.2, "--freeze_embed")
    assert run(circor / "data/circor1_segments.csv", tmp_path / "run", *flags) == 0
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    best = max(entry["valid"]["weighted_accuracy"] for entry in log)
    model = finetune.load_classifier(tmp_path / "run/checkpoint.pth")
    assert model.cfg.training_mask == 0.2 and model.cfg.feature_d == model.backbone.embed_dim
    run_again, sets = tuning(circor / "data/circor1_segments.csv", tmp_path)
    valid = sets["valid"]
    run_again.model.runtime = model.eval()
    result = run_again.predictions(valid)
    assert finetune.score_table(result, model.classes)["weighted_accuracy"] == pytest.approx(best)
    assert len(result) == valid.table["unit"].nunique() and "test weighted_accuracy" in caplog.text


def test_the_learning_rate_warms_up_and_ends_at_zero(prepared, tmp_path, monkeypatch):
    seen = {}

    def noted(epoch, *settings):
        assert settings == (1e-3, 0.0, 1, 4)
        seen[epoch] = learning_rate(epoch, *settings)
        return seen[epoch]

    monkeypatch.setattr("m2d.finetune.training.learning_rate", noted)
    stepped = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: stepped.append(self.param_groups[0]["lr"]) or step(self))
    assert run(prepared / "segments.csv", tmp_path / "run", "--epochs", 4, "--warmup_epochs", 1) == 0
    steps = len(seen) // 4
    assert sorted(seen) == [i / steps for i in range(4 * steps)] and stepped == list(seen.values())
    assert stepped[0] == 0 and stepped[steps] == 1e-3 and stepped[-1] < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="unit"), "no column unit"),
        (lambda t: t.assign(split="training"), "expected one of train, valid, test"),
        (lambda t: t[t["split"] == "train"], "no row of the split 'test'"),
        (lambda t: t.assign(end=0.0), "row 2: end is 0.0: expected more than start"),
        (lambda t: t.assign(start=99.0, end=100.0), "ends before the segment"),
        (lambda t: t.assign(file_name="none.npy"), "none.npy"),
    ],
)
def test_wrong_lists_are_named(prepared, tmp_path, caplog, change, message):
    listed = tmp_path / "segments.csv"
    change(pd.read_csv(prepared / "segments.csv")).to_csv(listed, index=False)
    assert run(listed, tmp_path / "run", "--epochs", 1, "--data_path", prepared) == 2
    assert message in caplog.text


def test_a_missing_list(tmp_path, caplog):
    assert run(tmp_path / "none.csv", tmp_path / "run") == 2 and "README" in caplog.text
