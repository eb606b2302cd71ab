"""Recipes for lung and heart sounds: lists from the data sets' layouts, scores, and fine-tuning on small made-up data."""

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from app import finetune, segments
from app.circor import prepare_circor
from app.icbhi_sprs import prepare_icbhi, prepare_sprs
from app.scores import main_score, scores, unit_probabilities
from m2d import options
from m2d.schedules import learning_rate

WEIGHTS = "m2d_vit_tiny-80x208p80x16p16k-random"


def sound(kind: str, seconds: float, rate: int, seed: int) -> np.ndarray:
    """Breath-like noise, with clicks (crackle), a tone (wheeze), or both."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    wave = 0.02 * rng.standard_normal(len(t))
    if kind in ("crackle", "both"):
        wave[:: rate // 25] += 0.8
    if kind in ("wheeze", "both"):
        wave += 0.3 * np.sin(2 * np.pi * rng.uniform(380, 420) * t)
    return wave


def write_wav(path: Path, pieces: list[np.ndarray], rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(np.concatenate(pieces), -1, 1), rate)


KINDS = ("normal", "crackle", "wheeze", "both")
FLAGS = {"normal": "0\t0", "crackle": "1\t0", "wheeze": "0\t1", "both": "1\t1"}


@pytest.fixture(scope="module")
def icbhi(tmp_path_factory) -> Path:
    """ICBHI's layout: 12 recordings of 4 cycles, one of each class; the last four recordings are the test."""
    folder = tmp_path_factory.mktemp("icbhi") / "ICBHI final database"
    split = []
    for i in range(12):
        name, rate = f"{101 + i}_1b1_Al_sc_Meditron", (4000, 44100)[i % 2]
        lengths = [1.0 + 0.3 * j for j in range(4)]
        ends = np.cumsum(lengths)
        cycles = list(zip(KINDS, lengths, ends, strict=True))
        write_wav(folder / f"{name}.wav", [sound(k, s, rate, 10 * i + j) for j, (k, s, _) in enumerate(cycles)], rate)
        lines = [f"{end - s:.3f}\t{end:.3f}\t{FLAGS[k]}" for k, s, end in cycles]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
        split.append(f"{name}\t{'test' if i >= 8 else 'train'}")
    (folder / "filename_format.txt").write_text("The recordings are named after the patient\n")
    (folder.parent / "split.txt").write_text("\n".join(split) + "\n")
    return folder


def prepare(folder: Path, out: Path, *flags: str) -> int:
    to = ["--lms", out / "data/icbhi_lms", "--to_list", out / "data/files_icbhi2017.csv", "--segments", out / "data/segments.csv"]
    return prepare_icbhi.main([str(each) for each in [folder, "--split_file", folder.parent / "split.txt", *to, *flags]])


@pytest.fixture(scope="module")
def prepared(icbhi, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    assert prepare(icbhi, out) == 0
    return out / "data"


def test_icbhi_lists(icbhi, prepared):
    table = segments.read_segments(prepared / "segments.csv")
    assert len(table) == 48 and table["unit"].is_unique
    first = table.iloc[1]
    assert first["file_name"] == "icbhi_lms/101_1b1_Al_sc_Meditron.npy" and first["label"] == "crackle"
    assert (first["start"], first["end"]) == (1.0, 2.3)
    assert table.groupby("split")["file_name"].nunique().to_dict() == {"train": 8, "test": 4}
    listed = pd.read_csv(prepared / "files_icbhi2017.csv")["file_name"]
    assert sorted(listed) == sorted(table["file_name"][table["split"] == "train"].unique())
    lms = np.load(prepared / listed[0])
    assert lms.shape == (1, 80, 611) and lms.dtype == np.float32  # 5.8 s, padded to 6.1


def test_icbhi_all_recordings_on_request(icbhi, prepared):
    assert prepare(icbhi, prepared.parent, "--pretrain_on", "all") == 0
    assert len(pd.read_csv(prepared / "files_icbhi2017.csv")) == 12
    assert prepare(icbhi, prepared.parent) == 0
    assert len(pd.read_csv(prepared / "files_icbhi2017.csv")) == 8


@pytest.mark.parametrize("line", ["0.5\t1.0\t2\t0", "1.0\t0.5\t0\t0", "x 1 0 0", "0.1 0.2 1"])
def test_icbhi_odd_annotations_are_named(tmp_path, caplog, line):
    folder = tmp_path / "db"
    write_wav(folder / "a.wav", [sound("normal", 2, 4000, 0)], 4000)
    (folder / "a.txt").write_text("0.0\t0.4\t0\t0\n\n" + line + "\n")
    (tmp_path / "split.txt").write_text("a test\n")
    assert prepare(folder, tmp_path) == 2
    assert "a.txt line 3" in caplog.text and "expected start, end, crackles" in caplog.text


def test_icbhi_without_its_files(tmp_path, icbhi, caplog):
    assert prepare_icbhi.main([str(icbhi), "--split_file", str(tmp_path / "none.txt")]) == 2
    assert "--split_file" in caplog.text
    (tmp_path / "split.txt").write_text("101_1b1_Al_sc_Meditron maybe\n")
    assert prepare_icbhi.main([str(icbhi), "--split_file", str(tmp_path / "split.txt")]) == 2
    assert "line 1" in caplog.text


def write_sprs(folder: Path) -> Path:
    for split, names in {"train2022": ("a_1", "b_2"), "test2022": ("c_3",)}.items():
        for name in names:
            write_wav(folder / f"{split}_wav" / f"{name}.wav", [sound("wheeze", 3, 8000, 1)], 8000)
            events = [{"start": "500", "end": "1500", "type": "Wheeze"}, {"start": "1500", "end": "2900", "type": "Normal"}]
            sub = "inter_test_json" if split == "test2022" else "."
            path = folder / f"{split}_json" / sub / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"record_annotation": "CAS", "event_annotation": events if name != "b_2" else []}))
    return folder


def run_sprs(folder: Path, out: Path) -> int:
    to = ["--lms", out / "data/lms", "--to_list", out / "data/files_sprs.csv", "--segments", out / "data/segments.csv"]
    return prepare_sprs.main([str(each) for each in [folder, *to]])


def test_sprsound_lists(tmp_path):
    assert run_sprs(write_sprs(tmp_path / "BioCAS2022"), tmp_path) == 0
    table = segments.read_segments(tmp_path / "data/segments.csv")
    assert table[["file_name", "start", "end", "label", "split", "unit"]].values.tolist() == [
        ["lms/train2022_wav/a_1.npy", 0.5, 1.5, "Wheeze", "train", "a_1_0"],
        ["lms/train2022_wav/a_1.npy", 1.5, 2.9, "Normal", "train", "a_1_1"],
        ["lms/test2022_wav/c_3.npy", 0.5, 1.5, "Wheeze", "test", "c_3_0"],
        ["lms/test2022_wav/c_3.npy", 1.5, 2.9, "Normal", "test", "c_3_1"],
    ]
    listed = pd.read_csv(tmp_path / "data/files_sprs.csv")["file_name"].tolist()
    assert listed == ["lms/train2022_wav/a_1.npy", "lms/train2022_wav/b_2.npy"]


def test_sprsound_what_is_wrong_is_named(tmp_path, caplog):
    folder = write_sprs(tmp_path / "BioCAS2022")
    broken = folder / "train2022_json" / "a_1.json"
    broken.write_text('{"event_annotation": [{"start": "1"}]}')
    assert run_sprs(folder, tmp_path) == 2 and str(broken) in caplog.text and "KeyError: 'end'" in caplog.text
    write_wav(folder / "more_train" / "a_1.wav", [sound("normal", 1, 8000, 0)], 8000)
    assert run_sprs(folder, tmp_path) == 2 and "have the same name" in caplog.text
    assert run_sprs(tmp_path / "data", tmp_path) == 2 and "NAME.json" in caplog.text


@pytest.fixture(scope="module")
def circor(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("circor")
    murmurs = ["Absent"] * 12 + ["Present"] * 8 + ["Unknown"] * 8
    rows = []
    for i, murmur in enumerate(murmurs):
        rows.append((str(2530 + i), "AV+PV", murmur))
        for place in ("AV", "PV")[: 1 + i % 2]:
            kind = {"Absent": "normal", "Present": "wheeze", "Unknown": "crackle"}[murmur]
            write_wav(folder / "training_data" / f"{2530 + i}_{place}.wav", [sound(kind, 1.0 + 0.7 * (i % 3), 4000, i)], 4000)
    pd.DataFrame(rows, columns=["Patient ID", "Recording locations:", "Murmur"]).to_csv(folder / "training_data.csv", index=False)
    flags = ["--lms", folder / "data/lms", "--to_folder", folder / "data", "--seconds", "1"]
    assert prepare_circor.main([str(each) for each in [folder, *flags]]) == 0
    return folder


def test_circor_splits_patients_by_class_and_recordings_into_pieces(circor):
    tables = [segments.read_segments(circor / f"data/circor{i}_segments.csv") for i in (1, 2, 3)]
    for i, table in enumerate(tables, 1):
        patients = table.drop_duplicates("unit")
        assert len(patients) == 28 and table.groupby("unit")["split"].nunique().max() == 1
        counts = patients.groupby(["label", "split"]).size().to_dict()
        assert counts["Absent", "train"] == 8 and counts["Absent", "valid"] == 1 and counts["Absent", "test"] == 3
        listed = pd.read_csv(circor / f"data/files_circor{i}.csv")["file_name"]
        assert set(listed) == set(table["file_name"][table["split"] == "train"])
    assert tables[0]["split"].tolist() != tables[1]["split"].tolist() != tables[2]["split"].tolist()
    pieces = tables[0].groupby("file_name")[["start", "end"]].apply(lambda rows: rows.values.tolist())
    assert pieces["lms/2531_AV.npy"] == [[0.0, 1.0], [0.7, 1.7]]


@given(st.floats(0.2, 70), st.sampled_from([1.0, 3.0, 5.0]))
def test_pieces_cover_a_recording(duration, seconds):
    cut = prepare_circor.pieces(duration, seconds)
    assert cut[0][0] == 0 and duration - 0.11 <= cut[-1][1] <= duration + 0.01
    assert all(b[0] <= a[1] + 0.001 for a, b in zip(cut, cut[1:], strict=False))
    assert all(abs(end - start - min(seconds, duration)) < 0.002 for start, end in cut)


def test_circor_odd_tables_are_named(tmp_path, caplog):
    (tmp_path / "training_data").mkdir()
    assert prepare_circor.main([str(tmp_path)]) == 2 and "training_data.csv" in caplog.text
    (tmp_path / "training_data.csv").write_text("Patient ID,Murmur\n1,Present\n2,Maybe\n")
    assert prepare_circor.main([str(tmp_path)]) == 2 and "row 3: Murmur is 'Maybe'" in caplog.text


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
    lms, target, row = test[5]
    with torch.inference_mode():
        probabilities = model(lms[None]).softmax(dim=1)[0].numpy()
    unit = test.table["unit"][row]
    np.testing.assert_allclose(result.loc[unit, model.classes].to_numpy(float), probabilities, rtol=1e-4)
    assert model.classes[target] == result.loc[unit, "label"]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        "backbone.pos_embed",
        "backbone.norm_stats",
        "backbone.patch_embed.proj.weight",
        "backbone.patch_embed.proj.bias",
    }
    train = segments.SegmentDataset(table[table["split"] == "train"], prepared, model.classes, 96)
    values = np.concatenate([train[i][0].numpy().ravel() for i in range(len(train))])
    np.testing.assert_allclose([model.cfg.mean, model.cfg.std], [values.mean(), values.std()], rtol=1e-4)


def test_a_batch_in_parts_gives_the_same_update(prepared):
    table = segments.read_segments(prepared / "segments.csv")
    base = [
        str(prepared),
        "--weights",
        WEIGHTS,
        "--output_dir",
        "x",
        "--device",
        "cpu",
        "--num_workers",
        "0",
        "--batch_size",
        "10",
    ]
    updated = []
    for parts in ("1", "3"):
        args = finetune.parse_args([*base, "--split_iter", parts])
        torch.manual_seed(0)
        model = finetune.SegmentClassifier(sorted(KINDS), weight_file=args.weights, dur_frames=96)
        train = segments.SegmentDataset(table[table["split"] == "train"], prepared, model.classes, 96)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        finetune.train_epoch(model, finetune.loader(train, args), optimizer, lambda done: 0.1, args)
        updated.append(model.state_dict())
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
    table = segments.read_segments(circor / "data/circor1_segments.csv")
    valid = segments.SegmentDataset(table[table["split"] == "valid"], circor / "data", model.classes, 96)
    args = finetune.parse_args([str(circor), "--weights", "x", "--output_dir", "x", "--device", "cpu", "--num_workers", "0"])
    result = finetune.evaluate(model, finetune.loader(valid, args), finetune.precision(args))
    assert finetune.score_table(result, model.classes)["weighted_accuracy"] == pytest.approx(best)
    assert len(result) == valid.table["unit"].nunique() and "test weighted_accuracy" in caplog.text


def test_the_learning_rate_warms_up_and_ends_at_zero(prepared, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        finetune, "train_epoch", lambda model, batches, optimizer, schedule, args: seen.append(schedule(0.5)) or 1.0
    )
    assert run(prepared / "segments.csv", tmp_path / "run", "--epochs", 4, "--warmup_epochs", 1) == 0
    assert seen == [learning_rate(epoch + 0.5, 1e-3, 0.0, 1, 4) for epoch in range(4)]
    assert seen[0] == 5e-4 and seen[-1] < 1e-4


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


def commands(*readmes: str) -> list[list[str]]:
    """The commands of the READMEs' shell blocks, as words."""
    found = []
    for readme in readmes:
        text = (Path(finetune.__file__).parent.parent / readme).read_text()
        blocks = [part.split("```")[0] for part in text.split("```sh\n")[1:]]
        found += [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return found


READMES = ("app/icbhi_sprs/README_ICBHI_SPRS.md", "app/circor/README.md")


def test_the_readmes_further_pretraining_commands_are_the_published_ones():
    mr7 = "m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth"
    start = "m2d_vit_base-80x200p16x4-230529/checkpoint-300.pth"
    noise = "--csv_bg_noise data/files_f_s_d_5_0_k.csv --noise_ratio"
    saving = "--save_freq 100 --eval_after 600 --seed"
    lungs = f"--epochs 600 --resume {start} --model m2d_x_vit_base --input_size 80x200 --patch_size 16x4 --batch_size 64"
    expected = [
        f"{lungs} --accum_iter 2 --csv_main data/files_icbhi2017.csv {noise} 0.3 {saving} 6 --teacher {start} "
        "--blr 3e-4 --loss_off 1. --min_ds_size 10000",
        f"{lungs} --accum_iter 2 --csv_main data/files_sprs.csv {noise} 0.01 {saving} 6 --teacher {start} "
        "--blr 3e-4 --loss_off 1. --min_ds_size 0",
        f"--epochs 600 --warmup_epochs 24 --resume {mr7} --model m2d_x_vit_base --batch_size 32 --accum_iter 4 "
        f"--csv_main data/files_circor1.csv {noise} 0.01 {saving} 3 --teacher {mr7} --blr 3e-4 --loss_off 1.",
    ]
    found = [words for words in commands(*READMES) if words[1] == "train_audio.py"]
    assert [" ".join(words[2:]) for words in found] == expected
    parser = options.make_parser("train_audio.py", "", {}, ())
    for words in found:
        args = parser.parse_args(words[2:])
        assert args.model == "m2d_x_vit_base" and args.epochs == 600 and args.loss_off == 1.0


def test_the_readmes_fine_tuning_commands_are_understood():
    parsed = [finetune.parse_args(words[2:]) for words in commands(*READMES) if words[1] == "app/finetune.py"]
    settings = [(a.epochs, a.batch_size, a.lr, a.split_iter, a.freeze_embed, a.dur_frames, a.training_mask) for a in parsed]
    assert settings == [
        (150, 64, 5e-5, 4, True, 801, 0.0),
        (50, 64, 5e-6, 4, True, 801, 0.0),
        (50, 32, 2.5e-4, 1, True, 501, 0.2),
    ]


def test_the_readmes_list_commands_name_existing_programs():
    root = Path(finetune.__file__).parent.parent
    programs = [
        words[1]
        for words in commands(*READMES, "data/README.md", "speech/README.md", "audioset/README.md")
        if words[0] == "python"
    ]
    own = [program for program in programs if program.endswith(".py") and program not in ("circor_eval.py",)]
    assert len(own) > 8 and all((root / program).is_file() for program in own)
