"""Flags: their defaults in each program, the command lines that must run, and what is refused before anything is made."""

import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_runs import PROGRAMS, ROOT, parser_of, program_of, run, settings_of, small_builders, write_list, write_pairs

from m2d.models import registry as models_mae
from m2d.train.checks import check
from m2d.train.pretrain import main

M2D, MAE, AS, SPEECH, CLAP, CLAP_ONLY = PROGRAMS


def parse(program, flags=""):
    return parser_of(program).parse_args(shlex.split(flags))


# ---------------------------------------------------------------- defaults

ALL = dict(
    accum_iter=1, stop_at=-1, decoder_depth=8, sr="16k", norm_stats=None, cont_mask=0, bf16=False, weight_decay=0.05,
    clip_grad=3.0, optim="adamw", lr=None, blr=3e-4, min_lr=0.0, data_path="data", csv_val="", output_dir="", log_dir="",
    device="cuda", seed=0, resume="", start_epoch=0, pin_mem=True, feature_eval_freq=10, batch_size=512, auto_resume=False,
    save_minutes=10.0, keep_last=0, skip_bad_files=False,
)  # fmt: skip
DUO = ALL | dict(
    ema_decay_init=0.99995, ema_decay=0.99999, loss_fn="norm_mse", loss_m2d=1.0, target_layers=(), norm_pix_loss=True,
    num_workers=8, warmup_epochs=20,
)  # fmt: skip
DEFAULTS = {
    M2D: DUO
    | dict(
        epochs=300, eval_after=50, save_freq=100, model="m2d_vit_base", input_size="80x608", patch_size="16x16",
        mask_ratio=0.7, loss_off=0.0, csv_main="data/files_audioset.csv", csv_bg_noise="", noise_ratio=0.0, min_ds_size=10000,
        force_start_epoch=0, teacher="", swap_inputs=False,
    ),
    AS: DUO
    | dict(
        epochs=300, eval_after=50, save_freq=100, model="m2d_as_vit_base", input_size="80x608", patch_size="16x16",
        mask_ratio=0.7, loss_off=0.1, csv_main="data/files_as_weighted.csv", csv_bg_noise="", noise_ratio=0.0,
        force_start_epoch=0, weighted=False,
    ),
    SPEECH: DUO
    | dict(
        epochs=1000, eval_after=500, save_freq=500, model="m2d_s_vit_base", input_size="80x208", patch_size="80x4",
        mask_ratio=0.6, loss_off=0.0, csv_main="data/files_ls960_hybrid.csv", csv_bg_noise="data/files_audioset.csv",
        noise_ratio=0.2, force_start_epoch=-1, warmup_epochs=60,
    ),
    CLAP: DUO
    | dict(
        epochs=300, eval_after=50, save_freq=100, model="m2d_clap_vit_base", input_size="80x608", patch_size="16x16",
        mask_ratio=0.7, loss_off=0.01, csv_main="data/files_audioset.csv", csv_bg_noise="", noise_ratio=0.0,
        force_start_epoch=0, file_caption="", text_encoder="A", sem_mode=0, missing_captions="error", published_gradient=False,
    ),
    CLAP_ONLY: {name: value for name, value in ALL.items() if name not in ("decoder_depth", "cont_mask", "resume")}
    | dict(
        epochs=30, warmup_epochs=5, blr=3e-6, model="m2d_clap_vit_base", input_size="80x1001", patch_size="16x16", mask_ratio=0.3,
        csv_main="data/files_audioset.csv", file_caption="", text_encoder="B", sem_mode=1, base_model="", finetune="",
        train_audio=False, truncate=False, compile=False, save_freq=10,
    ),
    MAE: ALL
    | dict(
        epochs=200, save_freq=50, eval_after=50, model="msm_mae_vit_base", input_size="80x208", patch_size="16x16",
        mask_ratio=0.75, norm_pix_loss=False, num_workers=10, csv_main="data/files_audioset.csv", min_ds_size=10000,
        warmup_epochs=20, force_start_epoch=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_defaults(program):
    found = vars(parse(program))
    assert {flag: found.get(flag, "no such flag") for flag in DEFAULTS[program]} == DEFAULTS[program]


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        (
            MAE,
            "teacher swap_inputs csv_bg_noise noise_ratio loss_fn loss_m2d loss_off ema_decay_init ema_decay target_layers "
            "half_target",
        ),
        (AS, "teacher swap_inputs min_ds_size"),
        (SPEECH, "teacher swap_inputs min_ds_size"),
        (M2D, "file_caption missing_captions text_encoder sem_mode published_gradient weighted"),
        (CLAP, "teacher swap_inputs min_ds_size weighted fsdp base_model finetune train_audio truncate"),
        (CLAP_ONLY, "decoder_depth loss_off loss_m2d ema_decay resume noise_ratio cont_mask fsdp"),
    ],
)
def test_flags_that_could_have_no_effect_are_not_there(program, absent, capsys):
    assert not set(absent.split()) & set(vars(parse(program)))
    with pytest.raises(SystemExit) as stopped:
        parse(program, f"--{absent.split()[0]} 1")
    assert stopped.value.code == 2 and f"--{absent.split()[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("program", PROGRAMS)
def test_aliases(program):
    assert parse(program, "--dataset data/x.csv").csv_main == "data/x.csv"
    assert parse(program, "--csv_main data/x.csv").csv_main == "data/x.csv"
    assert parse(program, "--eval_freq 3").feature_eval_freq == 3
    assert parse(program, "--feature_eval_freq 3").feature_eval_freq == 3
    assert parse(program, "--no_pin_mem").pin_mem is False and parse(program, "--no_pin_mem --pin_mem").pin_mem is True


def test_norm_pix_loss():
    assert parse(M2D, "--no_norm_pix_loss").norm_pix_loss is False
    assert parse(MAE, "--norm_pix_loss").norm_pix_loss is True


def test_no_flag_is_taken_for_another():
    with pytest.raises(SystemExit):
        parse(M2D, "--save 3")


def test_literals():
    assert parse(M2D, "--norm_stats [-7.1,4.2]").norm_stats == (-7.1, 4.2)
    assert parse(M2D, "--norm_stats '(-7, 4)'").norm_stats == (-7.0, 4.0)
    assert parse(M2D, "--norm_stats resume").norm_stats == "resume"
    assert parse(M2D, "--target_layers [0,2]").target_layers == (0, 2)
    assert parse(M2D, "--target_layers ''").target_layers == ()


@pytest.mark.parametrize(
    "flags",
    [
        "--norm_stats 5", "--norm_stats [1]", "--norm_stats [-7,0]", "--norm_stats [-7,-4]", "--norm_stats [1e999,4]",
        "--norm_stats __import__('os').getcwd()", "--norm_stats ['a','b']", "--norm_stats [-7,True]", "--norm_stats mean",
        "--target_layers 3", "--target_layers ['a']", "--target_layers [0,True]", "--target_layers open('x')",
        "--input_size 80", "--input_size 80x", "--input_size 80x0", "--input_size 80x-16", "--patch_size a x b",
        "--sr 22k", "--loss_fn l1", "--optim lars", "--epochs 1.5", "--batch_size many",
    ],
)  # fmt: skip
def test_values_that_cannot_be_read(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser_of(M2D).parse_args(flags.replace(" x ", "x").split(" ", 1))
    assert stopped.value.code == 2 and flags.split()[0] in capsys.readouterr().err


# ---------------------------------------------------------------- command lines that must run as they stand

TORCHRUN = "--input_size 80x608 --patch_size 16x16 --epochs 300 --batch_size 512 --accum_iter 1 --save_freq 50 --seed 3"
ICBHI = (
    "--epochs 600 --resume m2d_vit_base-80x200p16x4-230529/checkpoint-300.pth --model m2d_x_vit_base --input_size 80x200 "
    "--patch_size 16x4 --batch_size 64 --accum_iter 2 --csv_main {csv} --csv_bg_noise data/files_f_s_d_5_0_k.csv "
    "--noise_ratio {ratio} --save_freq 100 --eval_after 600 --seed 6 --blr 3e-4 --loss_off 1. --min_ds_size {size} "
    "--teacher m2d_vit_base-80x200p16x4-230529/checkpoint-300.pth"
)
GUIDE = (
    "--epochs 600 --warmup_epochs 24 --resume x-mr7/checkpoint-300.pth --model m2d_x_vit_base --batch_size 32 --accum_iter 4 "
    "--csv_main data/files_x.csv --csv_bg_noise data/files_f_s_d_5_0_k.csv --noise_ratio 0.01 --save_freq 100 --eval_after 600 "
    "--seed 3 --teacher x-mr7/checkpoint-300.pth --blr 3e-4 --loss_off 1."
)
COMMANDS = [
    (M2D, "--dataset data/files_fssd50k.csv"),
    (M2D, f"{TORCHRUN} --model m2d_vit_base --csv_main data/files_audioset.csv --data_path data --loss_off 0."),
    (AS, f"{TORCHRUN} --data_path data --loss_off 1."),
    (M2D, ICBHI.format(csv="data/files_icbhi2017.csv", ratio=0.3, size=10000)),
    (M2D, ICBHI.format(csv="data/files_sprs.csv", ratio=0.01, size=0)),
    (M2D, GUIDE),
    (
        SPEECH,
        "--loss_m2d 1. --loss_off 1. --input_size 80x208 --patch_size 80x4 --noise_ratio 0.2 --batch_size 128 --accum_iter 16",
    ),
    *(
        (SPEECH, f"--loss_m2d 1. --loss_off .5 --input_size {size} --patch_size 80x2 --noise_ratio 0.2")
        for size in ("80x400", "80x512 --batch_size 256 --accum_iter 2", "80x608 --batch_size 256 --accum_iter 2")
    ),
    (MAE, "--dataset data/files_audioset.csv --norm_pix_loss"),
]


@pytest.mark.parametrize(("program", "flags"), COMMANDS)
def test_published_command_lines_pass_the_checks(program, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    settings = settings_of(program, shlex.split(flags))
    for path in filter(None, (settings.data.csv_main, settings.data.csv_bg_noise)):
        Path(path).touch()
    check(settings, program_of(program).families)
    program_of(program).check(settings)


# ---------------------------------------------------------------- refusals


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a list of 20 short clips."""
    monkeypatch.chdir(tmp_path)
    for name, builder in small_builders().items():
        monkeypatch.setitem(models_mae.BUILDERS, name, builder)
    write_list(clips=20)
    return tmp_path


def refused(capsys, program, flags, *words):
    """Run; it ends with exit status 2, says these words in one line, and makes nothing."""
    before = {path for path in Path.cwd().rglob("*") if "stats.json" not in path.name}
    assert run(program, flags) == 2
    after = {path for path in Path.cwd().rglob("*") if "stats.json" not in path.name}
    assert after == before
    said = capsys.readouterr().out
    for word in words:
        assert word in said
    assert "Traceback" not in said
    return said


LIST = "--csv_main data/files_main.csv "


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model m2d_x_vit_tiny", ["--model m2d_x_vit_tiny", "--teacher"]),
        ("--model m2d_x_vit_tiny --loss_off 1.", ["--teacher"]),
        ("--teacher x.pth", ["--teacher", "m2d_x_vit"]),
        ("--loss_off 1.", ["--loss_off 1.0", "--teacher", "m2d_x_vit"]),
        ("--loss_m2d 0.5", ["--loss_m2d 0.5"]),
        ("--noise_ratio 0.2", ["--noise_ratio 0.2", "--csv_bg_noise"]),
        ("--csv_bg_noise data/files_main.csv", ["--csv_bg_noise", "--noise_ratio"]),
        ("--noise_ratio 1.2 --csv_bg_noise data/files_main.csv", ["--noise_ratio 1.2"]),
        ("--noise_ratio nan --csv_bg_noise data/files_main.csv", ["--noise_ratio nan"]),
        ("--swap_inputs", ["--swap_inputs", "--teacher", "--noise_ratio"]),
        ("--mask_ratio 0", ["--mask_ratio 0"]),
        ("--mask_ratio 1", ["--mask_ratio 1"]),
        ("--mask_ratio 0.95", ["--mask_ratio 0.95", "10 patches"]),
        ("--mask_ratio 1e-17", ["--mask_ratio 1e-17", "10 patches"]),
        ("--mask_ratio nan", ["--mask_ratio nan"]),
        ("--input_size 80x40", ["--input_size 80x40", "--patch_size 16x16"]),
        ("--patch_size 32x16", ["--input_size 80x32", "--patch_size 32x16"]),
        ("--input_size 64x32", ["--input_size 64x32", "80 mel bands"]),
        ("--model m2d_vit_bse", ["m2d_vit_bse", "m2d_vit_base"]),
        ("--model msm_mae_vit_tiny", ["msm_mae_vit_tiny"]),
        ("--model m2d_vit_tiny_encoder_only", ["m2d_vit_tiny_encoder_only", "m2d_vit_tiny"]),
        ("--cont_mask 3", ["--cont_mask 3", "2 columns"]),
        ("--target_layers [0,2]", ["target layers", "2"]),
        ("--batch_size 0", ["--batch_size 0"]),
        ("--epochs 0", ["--epochs 0"]),
        ("--accum_iter 0", ["--accum_iter 0"]),
        ("--save_freq 0", ["--save_freq 0"]),
        ("--decoder_depth 0", ["--decoder_depth 0"]),
        ("--warmup_epochs -1", ["--warmup_epochs -1"]),
        ("--num_workers -1", ["--num_workers -1"]),
        ("--clip_grad -1", ["--clip_grad -1"]),
        ("--save_minutes -1", ["--save_minutes -1"]),
        ("--weight_decay -1", ["--weight_decay -1"]),
        ("--lr -1", ["--lr -1"]),
        ("--blr nan", ["--blr nan"]),
        ("--ema_decay 1.5", ["--ema_decay 1.5"]),
        ("--start_epoch 1 --resume x.pth", ["--start_epoch", "--force_start_epoch"]),
        ("--start_epoch 2", ["--start_epoch 2", "--epochs 2"]),
        ("--force_start_epoch 1", ["--force_start_epoch", "--start_epoch"]),
        ("--force_start_epoch -2 --resume x.pth", ["--force_start_epoch -2"]),
        ("--force_start_epoch 2 --resume x.pth", ["--force_start_epoch 2", "--epochs 2"]),
        ("--stop_at 0", ["--stop_at 0"]),
        ("--norm_stats resume", ["--norm_stats resume", "--resume"]),
        ("--csv_main data/files_maim.csv", ["--csv_main data/files_maim.csv", "no such"]),
        ("--csv_val data/none.csv", ["--csv_val data/none.csv"]),
        ("--device tpu", ["--device tpu", "auto, cuda, mps, cpu"]),
        ("--batch_size 21", ["20 samples", "21", "--batch_size", "--min_ds_size"]),
        ("--batch_size 8 --accum_iter 3", ["24", "accum_iter 3"]),
        ("--resume nowhere/checkpoint-3.pth", ["nowhere/checkpoint-3.pth"]),
    ],
)
def test_refused(folder, capsys, flags, words):
    refused(capsys, M2D, LIST + flags, *words)


def test_nothing_is_measured_for_a_run_without_a_whole_batch(folder, capsys):
    refused(capsys, M2D, f"{LIST} --batch_size 21", "20 samples")
    assert not list(Path("data").glob("*.stats.json"))


def test_lists_that_cannot_be_used(folder, capsys):
    Path("data/no_column.csv").write_text("file\nmain_lms/000.npy\n")
    refused(capsys, M2D, "--csv_main data/no_column.csv", "data/no_column.csv", "file_name")
    Path("data/missing.csv").write_text("file_name\nmain_lms/000.npy\nmain_lms/no.npy\n")
    refused(capsys, M2D, "--csv_main data/missing.csv --batch_size 1", "row 3", "main_lms/no.npy", "--data_path")
    Path("data/empty.csv").write_text("file_name\n")
    refused(capsys, M2D, "--csv_main data/empty.csv", "empty")


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (np.zeros((1, 64, 40), np.float32), ["(1, 64, 40)", "80"]),
        (np.zeros((80, 40), np.float32), ["(80, 40)"]),
        (np.full((1, 80, 40), np.nan, np.float32), ["NaN"]),
        (b"\x93NUMPY", ["007.npy"]),
    ],
)
def test_clips_that_cannot_be_used_are_named(folder, capsys, clip, words):
    path = Path("data/main_lms/007.npy")
    if isinstance(clip, bytes):
        path.write_bytes(clip)
    else:
        np.save(path, clip)
    refused(capsys, M2D, LIST, "row 9", "main_lms/007.npy", *words)


def test_a_list_without_labels(folder, capsys):
    refused(capsys, AS, LIST, "label", "util/make_as_weighted_list.py")


def test_weighted_sampling_without_weights(folder, capsys):
    path = write_list("labelled", clips=20, label=["/m/a", "/m/b"])
    refused(capsys, AS, f"--csv_main {path} --weighted", "--weighted", "weight")


def test_speech_crops_that_do_not_fit_the_features(folder, capsys):
    path = write_pairs(clips=20)
    refused(capsys, SPEECH, f"--csv_main {path} --input_size 80x33 --patch_size 80x3", "even")
    refused(capsys, SPEECH, f"--csv_main {path} --input_size 80x30", "--input_size 80x30", "--patch_size 80x4")


def test_speech_pairs_without_features(folder, capsys):
    path = write_pairs(clips=20)
    clip = np.zeros((1, 80, 40), np.float32)
    np.savez("data/speech/003.npz", clip)
    refused(capsys, SPEECH, f"--csv_main {path}", "row 5", "speech/003.npz", "arr_1")


def test_a_noise_list_that_is_not_used_need_not_be_there(folder):
    path = write_pairs(clips=20)
    assert run(SPEECH, f"--csv_main {path} --noise_ratio 0. --epochs 1 --output_dir out") == 0


# ---------------------------------------------------------------- how programs are called


FILES = [
    "train_audio.py",
    "mae_train_audio.py",
    "audioset/train_as.py",
    "speech/train_speech.py",
    "clap/train_clap.py",
    "clap/clap_only.py",
]


@pytest.mark.parametrize("file", FILES)
def test_help_by_file_and_by_module(file, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [file, "--help"])
    runs = [
        lambda: runpy.run_path(file, run_name="__main__"),
        lambda: runpy.run_module(file.removesuffix(".py").replace("/", "."), run_name="__main__"),
    ]
    for run_it in runs:
        with pytest.raises(SystemExit) as stopped:
            run_it()
        said = capsys.readouterr().out
        assert stopped.value.code == 0
        assert "--auto_resume" in said and "--csv_main" in said and "(default: 0.05)" in said


@pytest.mark.parametrize("file", [pytest.param(file, marks=[pytest.mark.slow] * (file != FILES[2])) for file in FILES])
def test_a_file_finds_its_imports_from_anywhere(file, tmp_path):
    called = subprocess.run([sys.executable, ROOT / file, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert called.returncode == 0 and "--auto_resume" in called.stdout, called.stderr


def test_help_ends_with_exit_status_0(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(program_of(M2D), ["--help"])
    assert stopped.value.code == 0 and "--mask_ratio" in capsys.readouterr().out


def test_compilation_cannot_be_asked_for_and_refused():
    with pytest.raises(ValueError, match="--compile_blocks and --no_compile exclude each other"):
        check(settings_of(M2D, ["--compile_blocks", "--no_compile"]), program_of(M2D).families)
