"""Training from packs: a float32 pack gives the run of its list to the bit, and a float16 pack nearly so."""

from pathlib import Path

import numpy as np
import pytest
from small_runs import AS, M2D, MAE, SPEECH, digest, load, log_lines, run, step_losses, write_data, write_list, write_pairs

from m2d.cli.pack import main as pack_lms
from m2d.data.open import open_store

pytestmark = pytest.mark.usefixtures("small_workplace")


def pack(csv: Path, dtype: str = "float32") -> Path:
    """The pack of a list below data/, of several chunks."""
    out = csv.with_suffix(f".{dtype}.pack")
    assert pack_lms([str(csv), "--out", str(out), "--dtype", dtype, "--chunk_clips", "7"]) == 0
    return out


def trained(program: str, flags: str, out: str) -> dict:
    """What a run leaves that must not depend on how its data are stored."""
    assert run(program, f"--output_dir {out} {flags}") == 0
    epochs = [{k: v for k, v in line.items() if "loss" in k} for line in log_lines(Path(out))]
    steps = step_losses((Path(out) / "console.txt").read_text())
    assert len(epochs) == len(steps) == 2 and all("train_loss" in epoch for epoch in epochs)
    return {
        "stats": load(Path(out) / "last.pth")["stats"],
        "step losses": steps,
        "epochs": epochs,
        "weights": digest(Path(out) / "last.pth"),
    }


def noise_list() -> Path:
    return write_list("noise", clips=20, frames=25, seed=7)  # shorter than the crop, as background noise may be


@pytest.mark.parametrize("workers", [0, 2])
def test_m2d_with_noise_and_validation_is_the_same_from_packs(workers):
    main, noise, val = write_list(), noise_list(), write_list("val", clips=16, seed=5)
    flags = f"--noise_ratio 0.3 --num_workers {workers}"
    lists = f"--csv_main {main} --csv_bg_noise {noise} --csv_val {val} {flags}"
    packs = f"--csv_main {pack(main)} --csv_bg_noise {pack(noise)} --csv_val {pack(val)} {flags}"
    from_list, from_pack = trained(M2D, lists, "a"), trained(M2D, packs, "b")
    assert from_list == from_pack
    assert "val_loss" in str(from_list["epochs"])


@pytest.mark.parametrize("noise", [False, True])
def test_m2d_s_is_the_same_from_packs(noise):
    main, background = write_pairs(), noise_list()
    mix = "--loss_off 0.5 --noise_ratio {} --csv_bg_noise {}"
    flags = [mix.format(0.2, path) if noise else "--loss_off 0.5" for path in (background, pack(background))]
    from_list = trained(SPEECH, f"--csv_main {main} {flags[0]}", "a")
    assert from_list == trained(SPEECH, f"--csv_main {pack(main)} {flags[1]}", "b")
    assert from_list["epochs"][0]["train_loss"] != from_list["epochs"][1]["train_loss"]


@pytest.mark.parametrize(("program", "flags"), [(AS, "--weighted --loss_off 0.5"), (MAE, "")])
def test_the_other_programs_are_the_same_from_packs(program, flags):
    main = Path(write_data(program).split()[1])
    from_list = trained(program, f"--csv_main {main} {flags}", "a")
    assert from_list == trained(program, f"--csv_main {pack(main)} {flags}", "b")


@pytest.mark.parametrize("program", [M2D, SPEECH])
def test_a_float16_pack_changes_the_losses_by_less_than_a_thousandth(program):
    main = Path(write_data(program).split()[1])
    exact = trained(program, f"--csv_main {main}", "a")
    half = trained(program, f"--csv_main {pack(main, 'float16')}", "b")
    assert half["weights"] != exact["weights"]
    np.testing.assert_allclose(half["stats"][0], exact["stats"][0], atol=1e-4)
    losses = [[epoch["train_loss"] for epoch in run["epochs"]] for run in (exact, half)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_a_changed_value_of_a_pack_changes_the_run():
    main = write_list()
    packed = pack(main)
    before = trained(M2D, f"--csv_main {packed}", "a")
    name = open_store(packed, "data").name(0)
    lms = np.load(Path("data") / name)
    np.save(Path("data") / name, lms + np.float32(0.5))
    for path in packed.iterdir():
        path.unlink()
    assert trained(M2D, f"--csv_main {pack(main)}", "b")["weights"] != before["weights"]
