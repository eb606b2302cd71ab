"""Names of output folders: published ones, and the rule on strings."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import PROGRAMS, program_of, settings_of

from m2d.run.name import PARTS, differences, run_name, short_number, short_path

TODAY = date(2026, 11, 22)


def name_of(program, flags="", processes=1, today=TODAY):
    found, settings = program_of(program), settings_of(program, flags.split())
    effective_batch = settings.run.batch_size * settings.run.accum_iter * processes
    how = (found.name_defaults, found.name_has_rate, found.name_has_epochs)
    return run_name(settings.as_dict(), effective_batch, *how, today)


M2D = "m2d_vit_base-80x608p16x16p16k-261122-"
EMA = "--ema_decay_init 0.9995 --ema_decay 0.9999"
TEACHER = "--model m2d_x_vit_base --teacher teacher.pth --loss_off 1."


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("", f"{M2D}bs512-e300"),
        ("--batch_size 2048", f"{M2D}-e300"),
        ("--csv_main data/files_main.csv", f"{M2D}Mdfmbs512-e300"),
        ("--dataset data/files_main.csv", f"{M2D}Mdfmbs512-e300"),
        ("--blr 1e-3", f"{M2D}blr001bs512-e300"),
        ("--lr 0.5", f"{M2D}lr.5bs512-e300"),
        ("--no_norm_pix_loss", f"{M2D}~Nbs512-e300"),
        ("--optim sgd", f"{M2D}Osgdbs512-e300"),
        ("--loss_fn mse", f"{M2D}Lmbs512-e300"),
        ("--cont_mask 5", f"{M2D}bs512C5-e300"),
        (TEACHER, "m2d_x_vit_base-80x608p16x16p16k-261122-bs512lo1-e300"),
        (EMA, f"{M2D}ema.9995ed.9999bs512-e300"),
        ("--sr 32k", "m2d_vit_base-80x608p16x16p32k-261122-bs512-e300"),
        ("--min_ds_size 0", f"{M2D}bs512dn0-e300"),
        ("--seed 3 --decoder_depth 4 --mask_ratio 0.6 --warmup_epochs 5", f"{M2D}dd4mr.6s3wu5bs512-e300"),
    ],
)
def test_names_of_train_audio(flags, name):
    assert name_of("train_audio", flags) == name


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("", "bs512lo.1-e300"),
        ("--loss_off 1.", "bs512-e300"),
        ("--loss_off 1. --noise_ratio 0.2 --csv_bg_noise data/files_audioset.csv", "Ddfabs512nr.2-e300"),
        ("--noise_ratio 0.2 --csv_bg_noise data/files_audioset.csv", "Ddfabs512lo.1nr.2-e300"),
    ],
)
def test_names_of_train_as(flags, name):
    assert name_of("audioset.train_as", flags) == f"m2d_as_vit_base-80x608p16x16p16k-261122-{name}"


@pytest.mark.parametrize(("flags", "name"), [("", "MdflhDdfabs512"), ("--loss_off 1. --noise_ratio 0.", "MdflhDdfabs512lo1nr0")])
def test_names_of_train_speech_have_neither_rate_nor_epochs(flags, name):
    assert name_of("speech.train_speech", flags) == f"m2d_s_vit_base-80x208p80x4-261122-{name}"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--seed 3", "p16k-261122-s3bs512-e300"),
        ("--text_encoder N --sem_mode 1 --loss_off .02", "p16kpN-261122-bs512lo02sm1-e300"),
        ("--text_encoder some/folder", "p16k-261122-bs512-e300"),
    ],
)
def test_names_of_train_clap_tell_the_text_encoder(flags, name):
    assert name_of("clap.train_clap", flags) == f"m2d_clap_vit_base-80x608p16x16{name}"


def test_names_of_clap_only_tell_that_the_text_encoder_is_in_the_file():
    assert name_of("clap.clap_only", "--csv_main a/b") == "m2d_clap_vit_base-80x1001p16x16p16kpBpTI-261122-Mabbs512-e30"


def test_name_of_mae():
    assert name_of("mae_train_audio") == "msm_mae_vit_base-80x208p16x16-261122-mr.75~N"


def test_the_example_of_a_released_run():
    flags = (
        "--model m2d_x_vit_base --input_size 80x200 --patch_size 16x4 --batch_size 64 --accum_iter 2 --epochs 600 --seed 6 "
        "--csv_main data/files_icbhi2017.csv --csv_bg_noise data/files_f_s_d_5_0_k.csv --noise_ratio 0.3 --teacher t.pth "
        "--loss_off 1. --blr 3e-4 --min_ds_size 10000"
    )
    name = name_of("train_audio", flags, today=date(2024, 5, 14))
    assert name == "m2d_x_vit_base-80x200p16x4p16k-240514-MdfiDdffsd50ks6bs128a2lo1nr.3-e600"


def test_effective_batch_counts_processes_and_accumulation():
    assert name_of("train_audio", "--accum_iter 2", processes=2) == f"{M2D}a2-e300"


@pytest.mark.parametrize("program", PROGRAMS)
def test_sizes_are_canonical_in_names(program):
    assert "-80x640p" in name_of(program, "--input_size 80X640")


# ---------------------------------------------------------------- the rule on strings


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05, "05"), (0.01, "01"), (0.7, ".7"), (1e-5, "1e-05"), (1.0, "1"), (10, "10"), (0.0, "0"), (1e-3, "001"), (3, "3")],
)
def test_short_numbers(value, text):
    assert short_number(value) == text


@given(st.integers(-(10**9), 10**9))
def test_integers_stand_as_they_are(value):
    assert short_number(value) == str(value)


@given(st.integers(1, 10**6))
def test_whole_floats_lose_their_point(value):
    assert short_number(float(value)) == str(value)


@given(st.integers(1, 9), st.integers(0, 99999))
def test_a_leading_zero_goes_and_one_after_the_point_is_taken_with_the_point(first, rest):
    digits = f"{first}{rest}".rstrip("0")
    assert short_number(float(f"0.{digits}")) == f".{digits}"
    small = float(f"0.0{digits}")
    if "e" not in str(small):
        assert short_number(small) == f"0{digits}"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_rule_is_on_strings(value):
    text = str(value)
    while ".0" in text:
        text = text[: text.index(".0")] + text[text.index(".0") + 2 :]
    pieces = text.split("0.")
    assert short_number(value) == ".".join(pieces)


@pytest.mark.parametrize(
    ("path", "text"), [("data/files_f_s_d_5_0_k.csv", "dffsd50k"), ("/a//b_c/d.csv", "abcd"), ("x.csv", "x"), ("", "")]
)
def test_short_paths(path, text):
    assert short_path(path) == text


def test_every_part_appears_once_and_in_order():
    changed = {part.flag: 7 for part in PARTS} | {"csv_main": "a/b", "csv_bg_noise": "c_d", "loss_fn": "mse", "optim": "sgd"}
    text = differences(changed, {})
    assert text == "MabDcdema7ed7dd7mr7s7~NLmOsgdwu7blr7lr7bs7a7lm7lo7nr7dn7C7sm7"
    assert differences({part.flag: part.default for part in PARTS}, {}) == ""
