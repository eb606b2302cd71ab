"""Training on several lists and packs at once: concatenated, weighted, resumed."""

from pathlib import Path

import pytest
from small_runs import AS, M2D, SPEECH, digest, run, write_list, write_pairs

from m2d.cli.pack import main as pack

pytestmark = pytest.mark.usefixtures("small_workplace")


def packed(csv: Path, dtype: str = "float32") -> Path:
    out = csv.with_suffix(".pack")
    assert pack([str(csv), "--out", str(out), "--dtype", dtype, "--chunk_clips", "7"]) == 0
    return out


def weights_of(flags: str, out: str, program: str = M2D) -> str:
    assert run(program, f"{flags} --output_dir {out}") == 0
    return digest(Path(out) / "last.pth")


def test_two_lists_are_the_list_of_both():
    first, second = write_list("a", clips=20), write_list("b", clips=28, seed=1)
    both = first.with_name("both.csv")
    both.write_text(first.read_text() + second.read_text().split("\n", 1)[1])
    expected = weights_of(f"--csv_main {both}", "both")
    assert weights_of(f"--csv_main {first},{second}", "lists") == expected
    assert weights_of(f"--csv_main {packed(first)},{packed(second)}", "packs") == expected
    assert weights_of(f"--csv_main {first}:2,{second}:2", "alike") == expected


def test_a_weighted_run_is_resumed_exactly_on_packs_and_lists():
    first, second = write_list("a", clips=20), write_list("b", clips=28, seed=1)
    flags = f"--csv_main {packed(first)}:2,{second} --epochs 3 --num_workers 2 --min_ds_size 0"
    whole = weights_of(flags, "whole")
    assert whole == weights_of(flags.replace(str(first.with_suffix(".pack")), str(first)), "lists")
    assert whole != weights_of(flags.replace(":2", ""), "plain")
    weights_of(f"{flags} --stop_at 1", "stopped")
    assert weights_of(f"{flags} --auto_resume", "stopped") == whole
    assert run(M2D, f"{flags.replace(':2', ':3')} --auto_resume --output_dir stopped") == 2


def test_noise_and_validation_take_several_lists_too_but_no_weights(capsys):
    first, second = write_list("a", clips=20), write_list("b", clips=12, seed=1)
    lists = f"--csv_bg_noise {first},{second} --noise_ratio 0.2 --csv_val {second},{first}"
    weights_of(f"--csv_main {first} {lists}", "both")
    assert run(M2D, f"--csv_main {first} --csv_val {second}:2 --output_dir no") == 2
    assert "only the lists of --csv_main have weights" in capsys.readouterr().out
    assert run(M2D, f"--csv_main {first},data/not_there.csv --output_dir no") == 2
    assert "--csv_main data/not_there.csv: no such file" in capsys.readouterr().out


def test_labels_of_several_lists_are_one_set_of_classes():
    first = write_list("a", clips=20, label=["x", "y"], weight=["1", "2"])
    second = write_list("b", clips=20, seed=1, label=["y", "z"], weight=["1", "3"])
    drawn = weights_of(f"--csv_main {first}:3,{second} --weighted", "drawn", AS)
    assert drawn != weights_of(f"--csv_main {first},{second} --weighted", "alike", AS)
    assert drawn != weights_of(f"--csv_main {first}:3,{second}", "shares", AS)


def test_speech_of_several_packs():
    first, second = write_pairs("a", clips=24), write_pairs("b", clips=24, seed=1)
    expected = weights_of(f"--csv_main {first},{second} --loss_off 0.5 --noise_ratio 0", "lists", SPEECH)
    assert weights_of(f"--csv_main {packed(first)},{packed(second)} --loss_off 0.5 --noise_ratio 0", "packs", SPEECH) == expected


def test_packs_of_two_types_mix():
    first, second = write_list("a", clips=24), write_list("b", clips=24, seed=1)
    exact = weights_of(f"--csv_main {packed(first)},{packed(second)}", "exact")
    half = second.with_name("half.pack")
    assert pack([str(second), "--out", str(half)]) == 0
    assert weights_of(f"--csv_main {packed(first)},{half}", "half") != exact
