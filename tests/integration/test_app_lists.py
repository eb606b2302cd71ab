"""Lists of lung and heart sounds, made from the data sets' layouts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from app_data import prepare_lungs, sound, write_circor, write_icbhi, write_wav
from hypothesis import given
from hypothesis import strategies as st

from app import segments
from app.circor import prepare_circor
from app.icbhi_sprs import prepare_icbhi, prepare_sprs


@pytest.fixture(scope="module")
def icbhi(tmp_path_factory) -> Path:
    return write_icbhi(tmp_path_factory.mktemp("icbhi") / "ICBHI final database")


@pytest.fixture(scope="module")
def prepared(icbhi, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    assert prepare_lungs(icbhi, out) == 0
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
    assert prepare_lungs(icbhi, prepared.parent, "--pretrain_on", "all", "--overwrite") == 0
    assert len(pd.read_csv(prepared / "files_icbhi2017.csv")) == 12
    assert prepare_lungs(icbhi, prepared.parent, "--overwrite") == 0
    assert len(pd.read_csv(prepared / "files_icbhi2017.csv")) == 8


@pytest.mark.parametrize("line", ["0.5\t1.0\t2\t0", "1.0\t0.5\t0\t0", "x 1 0 0", "0.1 0.2 1"])
def test_icbhi_odd_annotations_are_named(tmp_path, caplog, line):
    folder = tmp_path / "db"
    write_wav(folder / "a.wav", [sound("normal", 2, 4000, 0)], 4000)
    (folder / "a.txt").write_text("0.0\t0.4\t0\t0\n\n" + line + "\n")
    (tmp_path / "split.txt").write_text("a test\n")
    assert prepare_lungs(folder, tmp_path) == 2
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
    return write_circor(tmp_path_factory.mktemp("circor"))


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
