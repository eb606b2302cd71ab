"""Stages 2 and 2.1 of M2D-CLAP: a text encoder and a projector learn to agree with an audio encoder."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import CLAP, CLAP_ONLY, LIST, digest, flags_of, load, log_lines, program_of, run, run_ranks, settings_of
from small_runs import write_data as write_stage_1
from text_models import WORDS, bert_folder

from m2d.data.rng import Purpose, uniform
from m2d.inference.runtime import RuntimeM2D
from m2d.models.masking import structured_counts
from m2d.models.text_encoder import load_text_encoder
from m2d.train import setup as setup_run
from m2d.train.batch_transform import MaskRule
from m2d.train.distributed.launch import Launch

TEXTS = "--file_caption data/texts.csv"


@pytest.fixture
def workplace(small_workplace):
    """Clips, captions that tell a clip's centre band, a pre-trained model in base/ and a BERT in bert/."""
    assert run(CLAP, f"{write_stage_1(CLAP)} --epochs 1 --norm_stats [-6.5,3.5] --output_dir base") == 0
    rows = []
    for i in range(48):
        centre = int(np.load(f"data/main_lms/{i:03d}.npy")[0].mean(axis=1).argmax())
        rows += [f"{i:03d}.wav,a {WORDS[3 + centre // 8]} sound", f"{i:03d}.wav,the {WORDS[3 + centre // 8]} is heard"]
    Path("data/texts.csv").write_text("\n".join(["file_name,caption", *rows]) + "\n")
    bert_folder(Path("bert"))
    return small_workplace


def trained(folder):
    return load(Path(folder) / "last.pth")


def test_texts_learn_to_find_clips_and_the_audio_encoder_stays(workplace):
    flags = f"{LIST} --csv_val data/files_main.csv {TEXTS} --epochs 15 --warmup_epochs 1 --lr 0.001 --output_dir out"
    assert run(CLAP_ONLY, flags) == 0
    first, last = log_lines(Path("out"))[0], log_lines(Path("out"))[-1]
    assert last["train_loss"] < 1.95 < math.log(8) < first["train_loss"]  # that of equal embeddings is log 8
    assert last["val_t2a_r10"] > 0.3 and last["train_logit_scale"] <= 4.6052
    saved, base = trained("out"), trained("base")["model"]
    names = {"logit_scale", "backbone.audio_proj.sem_token", "text_proj.weight"}
    names.add("text_encoder.text_encoder.encoder.layer.1.output.dense.weight")
    assert names <= saved["model"].keys() and saved["args"]["base_model"] == "base/last.pth"
    for name in ("blocks.1.mlp.fc1.weight", "patch_embed.proj.weight", "norm.weight"):
        assert torch.equal(saved["model"][f"backbone.{name}"], base[name])
    assert saved["model"]["backbone.norm_stats"].tolist() == list(saved["stats"][0]) == [-6.5, 3.5]
    start = load_text_encoder("bert").text_encoder.state_dict()
    moved = "encoder.layer.1.output.dense.weight"
    assert not torch.equal(saved["model"][f"text_encoder.text_encoder.{moved}"], start[moved])
    runtime = RuntimeM2D(weight_file="out/last.pth")
    texts = ["a dog sound", "the roof is heard"]
    text_encoder = load_text_encoder("bert", {name: saved["model"][f"text_encoder.text_encoder.{name}"] for name in start})
    text_proj = [saved["model"][f"text_proj.{name}"] for name in ("weight", "bias")]
    with torch.no_grad():
        wanted = torch.nn.functional.linear(text_encoder(texts), *text_proj)
    torch.testing.assert_close(runtime.encode_clap_text(texts), wanted)
    pooler = "pooler.dense.weight"
    assert torch.equal(saved["model"][f"text_encoder.text_encoder.{pooler}"], start[pooler])


def test_the_audio_encoder_is_trained_when_asked(workplace):
    assert run(CLAP_ONLY, f"{LIST} {TEXTS} --train_audio --mask_ratio 0 --lr 0.001 --warmup_epochs 0 --output_dir out") == 0
    name = "blocks.1.mlp.fc1.weight"
    assert not torch.equal(trained("out")["model"][f"backbone.{name}"], trained("base")["model"][name])


@pytest.mark.parametrize("mask_ratio", [0.0, 0.4])
def test_two_processes_learn_what_one_does(workplace, mask_ratio):
    flags = f"{LIST} {TEXTS} --optim sgd --lr 0.05 --warmup_epochs 0 --epochs 1 --seed 3 --mask_ratio {mask_ratio}"
    assert run(CLAP_ONLY, f"{flags} --batch_size 8 --output_dir one") == 0
    statuses, said = run_ranks(CLAP_ONLY, f"{flags} --batch_size 4 --output_dir two")
    assert statuses == [0, 0], said
    one, two = trained("one")["model"], trained("two")["model"]
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    assert log_lines(Path("one"))[0] == pytest.approx(log_lines(Path("two"))[0], rel=1e-4, abs=1e-5)


def test_a_stopped_run_is_continued_exactly(workplace):
    flags = f"{LIST} {TEXTS} --epochs 4 --lr 0.001 --warmup_epochs 0"
    assert run(CLAP_ONLY, f"{flags} --output_dir whole") == 0
    assert run(CLAP_ONLY, f"{flags} --output_dir parts --stop_at 2") == 0
    assert run(CLAP_ONLY, f"{flags} --output_dir parts --auto_resume") == 0
    assert digest(Path("whole/last.pth")) == digest(Path("parts/last.pth"))


def test_the_captions_may_stand_in_the_list_itself(workplace):
    rows = Path("data/texts.csv").read_text().splitlines()
    rows = [rows[0], *(f"main_lms/{row.replace('.wav', '.npy')}" for row in rows[1:])]
    Path("data/files_texts.csv").write_text("\n".join(rows) + "\n")
    assert run(CLAP_ONLY, "--csv_main data/files_texts.csv --epochs 1 --output_dir out") == 0


def trainer_of(flags):
    """A trainer as a run makes it."""
    settings = settings_of(CLAP_ONLY, flags_of(CLAP_ONLY, flags))
    launch = Launch(0, 1, 0, torch.device("cpu"))
    data = setup_run.open_data(program_of(CLAP_ONLY), settings, launch).train
    sampler = setup_run.make_sampler(settings, data, launch)
    return setup_run.make_trainer(settings, data, sampler, *setup_run.normalisation(settings, data, launch), launch)


def test_a_later_stage_takes_all_of_the_earlier_one(workplace):
    assert run(CLAP_ONLY, f"{LIST} {TEXTS} --lr 0.001 --epochs 1 --warmup_epochs 0 --output_dir stage2") == 0
    before = trained("stage2")["model"]
    again = trainer_of(f"{LIST} {TEXTS} --base_model= --finetune stage2/last.pth --mask_ratio 0").model.state_dict()
    assert again.keys() == before.keys()
    assert not [name for name in before if not torch.equal(before[name], again[name])]
    other = str(bert_folder(Path("other"), width=48, heads=3, seed=1))
    changed = trainer_of(f"{LIST} {TEXTS} --base_model= --finetune stage2/last.pth --text_encoder {other}").model
    assert "text_proj.weight" not in changed.state_dict()  # it was the other text encoder's
    start = load_text_encoder(other).text_encoder.state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in changed.text_encoder.text_encoder.state_dict().items())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--base_model=", "--base_model CHECKPOINT is missing"),
        ("--finetune x.pth", "no effect with --finetune"),
        ("--mask_ratio 1", "below 1"),
        ("--file_caption data/captions.npz", "holds embeddings"),
        ("--file_caption data/long.csv", "42 tokens, bert takes at most 24"),
        ("--base_model no.pth", "no checkpoint no.pth"),
        ("--text_encoder no/such/folder", "text encoder no/such/folder"),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_is_made(workplace, flags, told, capsys):
    Path("data/long.csv").write_text("\n".join(["file_name,caption", *(f"{i:03d}.wav,{'rain ' * 40}" for i in range(48))]))
    assert run(CLAP_ONLY, f"{LIST} {TEXTS} --output_dir out {flags}") == 2
    assert told in capsys.readouterr().out and not Path("out").exists()
    if "long" in flags:
        assert run(CLAP_ONLY, f"{LIST} {flags} --truncate --epochs 1 --output_dir out") == 0


def test_structured_masks_depend_on_the_update_and_the_position_alone():
    rule = MaskRule((5, 12), 0.3, seed=1, structured=True, per_update=8)
    positions = torch.arange(32)
    whole = [rule(2, positions[i : i + 8], i) for i in range(0, 32, 8)]
    halves = [rule(2, positions[i : i + 4], i) for i in range(0, 32, 4)]
    for n, plan in enumerate(whole):
        assert halves[2 * n].keep == halves[2 * n + 1].keep == plan.keep
        assert torch.equal(torch.cat([halves[2 * n].ids_restore, halves[2 * n + 1].ids_restore]), plan.ids_restore)
        rows, columns = structured_counts((5, 12), 0.3, float(uniform(1, 2, np.array([n]), Purpose.MASK_SHAPE)[0]))
        assert plan.keep == (5 - rows) * (12 - columns)
        shown = plan.mask.unflatten(1, (5, 12))
        assert ((shown.amin(dim=2) == 1).sum(dim=1) >= rows).all() and ((shown.amin(dim=1) == 1).sum(dim=1) >= columns).all()
    assert len({plan.keep for plan in whole}) > 1
    assert MaskRule((5, 12), 0.0, seed=1, structured=True)(0, positions) == 0.0
