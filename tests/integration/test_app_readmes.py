"""The READMEs below the project's folder: their commands are the published ones, and are understood."""

import re
import shlex
from pathlib import Path

import pytest
from small_runs import program_of, settings_of

from app import finetune
from m2d.train.checks import check

ROOT = Path(__file__).resolve().parents[2]
READMES = ("app/icbhi_sprs/README_ICBHI_SPRS.md", "app/circor/README.md")
DATA_READMES = ("data/README.md", "speech/README.md", "audioset/README.md")
MR7 = "m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth"
P16X4 = "m2d_vit_base-80x200p16x4-230529/checkpoint-300.pth"


def commands(*readmes: str) -> list[list[str]]:
    """The commands of the READMEs' shell blocks, as words; of a loop, what stands in it."""
    blocks = [block for readme in readmes for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / readme).read_text(), re.M | re.S)]
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for words in lines if words and words[0] not in ("for", "done")]


def training(words: list[str]) -> tuple[str, list[str]] | None:
    """The module and the arguments of a command that trains."""
    for i, word in enumerate(words):
        module = word.removesuffix(".py")
        if module in ("train_audio", "mae_train_audio", "audioset.train_as", "speech.train_speech"):
            return module, words[i + 1 :]
    return None


def test_the_readmes_further_pretraining_commands_are_the_published_ones():
    noise = "--csv_bg_noise data/files_f_s_d_5_0_k.csv --noise_ratio"
    saving = "--save_freq 100 --eval_after 600 --seed"
    lungs = f"--epochs 600 --resume {P16X4} --model m2d_x_vit_base --input_size 80x200 --patch_size 16x4 --batch_size 64"
    heart = f"--epochs 600 --warmup_epochs 24 --resume {MR7} --model m2d_x_vit_base --batch_size 32 --accum_iter 4"
    heart_end = f"{noise} 0.01 {saving} 3 --teacher {MR7} --blr 3e-4 --loss_off 1."
    expected = [
        f"{lungs} --accum_iter 2 --csv_main data/files_icbhi2017.csv {noise} 0.3 {saving} 6 --teacher {P16X4} "
        "--blr 3e-4 --loss_off 1. --min_ds_size 10000",
        f"{lungs} --accum_iter 2 --csv_main data/files_sprs.csv {noise} 0.01 {saving} 6 --teacher {P16X4} "
        "--blr 3e-4 --loss_off 1. --min_ds_size 0",
        f"{heart} --csv_main data/files_circor1.csv {heart_end}",
        f"{heart} --csv_main data/files_circor$N.csv {heart_end} --output_dir runs/circor$N",
    ]
    found = [words for words in commands(*READMES) if words[1] == "train_audio.py"]
    assert [" ".join(words[2:]) for words in found] == expected
    for words in found:
        settings = settings_of("train_audio", words[2:])
        assert (settings.model.model, settings.run.epochs, settings.loss.loss_off) == ("m2d_x_vit_base", 600, 1.0)


def test_the_readmes_fine_tuning_commands_are_understood():
    parsed = [finetune.parse_args(words[2:]) for words in commands(*READMES) if words[1] == "app/finetune.py"]
    settings = [(a.epochs, a.batch_size, a.lr, a.split_iter, a.freeze_embed, a.dur_frames, a.training_mask) for a in parsed]
    assert settings == [
        (150, 64, 5e-5, 4, True, 801, 0.0),
        (50, 64, 5e-6, 4, True, 801, 0.0),
        (50, 32, 2.5e-4, 1, True, 501, 0.2),
        (50, 32, 2.5e-4, 1, True, 501, 0.2),
    ]


def test_the_readmes_list_commands_name_existing_programs():
    programs = [words[1] for words in commands(*READMES, *DATA_READMES) if words[0] == "python"]
    own = [program for program in programs if program.endswith(".py") and program not in ("circor_eval.py",)]
    assert len(own) > 8 and all((ROOT / program).is_file() for program in own)


@pytest.mark.parametrize("readme", DATA_READMES)
def test_the_readmes_training_commands_are_understood(readme, tmp_path, monkeypatch):
    found = [command for words in commands(readme) if (command := training(words))]
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    batches = set()
    for module, arguments in found:
        program, settings = program_of(module), settings_of(module, arguments)
        for text in filter(None, (settings.data.csv_main, settings.data.csv_bg_noise)):
            for path in text.split(","):
                Path(path.partition(":")[0]).touch()
        check(settings, program.families)
        program.check(settings)
        if not settings.model.model.endswith("_mini"):  # an example for a laptop; all others have the published batches
            batches.add((settings.run.batch_size, settings.run.accum_iter))
    assert found and batches <= {(512, 1), (256, 2), (128, 16)}


def test_the_markdown_files_links_lead_somewhere():
    parts = {path: path.relative_to(ROOT).parts for path in ROOT.rglob("*.md")}
    files = [path for path, names in parts.items() if names[0] != "evar" and not any(name.startswith(".") for name in names)]
    assert len(files) > 10
    for path in files:
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            target, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = (path.parent / target).resolve() if target else path
            assert target.exists(), f"{path}: {link}"
            if anchor and target.suffix == ".md":
                titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
                assert anchor in {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}, link
