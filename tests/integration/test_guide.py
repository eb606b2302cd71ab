"""Guide_app.md: its commands are understood, its numbers are right, its links lead somewhere."""

import importlib
import inspect
import logging
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from small_runs import parser_of, program_of, settings_of

from app import finetune
from m2d.checkpoint.spec import parse_sizes_by_name
from m2d.inference import embed, tag
from m2d.train.checks import check
from m2d.train.optim import ema_decay
from wav_to_lms import convert_wav

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "Guide_app.md").read_text()
BLOCKS = {language: re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.M | re.S) for language in ("sh", "python")}
COMMANDS = [line for block in BLOCKS["sh"] for line in block.replace("\\\n", " ").splitlines()]
TRAINING = ("train_audio", "audioset.train_as", "speech.train_speech", "mae_train_audio")
EMA_INITIAL, EMA_FINAL = 0.99995, 0.99999


def split_command(line):
    """Of `[cd FOLDER &&] [VARIABLE=…] program arguments`: the folder, what is run (a module, or a file) and its arguments."""
    folder, words = ROOT, shlex.split(line)
    if words[0] == "cd":
        assert words[2] == "&&"
        folder, words = ROOT / words[1], words[3:]
    while "=" in words[0]:
        words.pop(0)
    program = words.pop(0)
    if program == "torchrun":
        while words[0].startswith("--"):
            words.pop(0)
    else:
        assert program in ("python", "bash")
    if words[0] == "-m":
        return folder, words[1], words[2:]
    return folder, words[0], words[1:]


def check_training(module, arguments):
    program, settings = program_of(module), settings_of(module, arguments)
    Path("data").mkdir(exist_ok=True)
    for path in (settings.data.csv_main, settings.data.csv_bg_noise):
        if path:
            Path(path).touch()
    check(settings, program.families)
    program.check(settings)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_line_is_understood(line, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    folder, program, arguments = split_command(line)
    module = program.removesuffix(".py").replace("/", ".")
    if program.endswith(".sh"):
        assert (folder / program).resolve().is_file()
    elif module in TRAINING:
        check_training(module, arguments)
    elif module in ("m2d.embed", "m2d.tag"):
        # An argument it does not know would end it here; that its files are not there is said later.
        with caplog.at_level(logging.ERROR, "m2d"):
            assert importlib.import_module(module).main(arguments) == 2
        assert "there is no file or folder" in caplog.text
    elif module == "app.finetune":
        finetune.parse_args(arguments)
    else:
        assert program == "wav_to_lms.py"
        positional = [word for i, word in enumerate(arguments) if not (word + arguments[i - 1]).count("--")]
        flags = [word.removeprefix("--") for word in arguments if word.startswith("--")]
        inspect.signature(convert_wav).bind(*positional[:2], **dict.fromkeys(flags))


def test_there_are_commands_of_every_kind():
    programs = {split_command(line)[1] for line in COMMANDS}
    assert len(COMMANDS) >= 12 and {"train_audio.py", "train_audio", "wav_to_lms.py", "m2d.embed", "app/finetune.py"} <= programs


def test_its_flags_exist(capsys):
    known = {"--nproc_per_node", "--logdir"} | {f"--{name}" for name in inspect.signature(convert_wav).parameters}
    for module in TRAINING:
        known |= set(parser_of(module)._option_string_actions)
    for main in (embed.main, tag.main, finetune.main):
        with pytest.raises(SystemExit):
            main(["--help"])
        known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    used = set(re.findall(r"(?<![\w-])--[a-z]\w*", GUIDE))
    assert len(used) > 30 and not used - known


def number(text):
    return float(re.match(r"[\d,.]+(e-?\d+)?", text.strip())[0].replace(",", ""))


def rest_of_start(updates, initial=EMA_INITIAL, final=EMA_FINAL):
    """Share of the target encoder's start that is left after a whole run."""
    return np.prod([ema_decay(i, updates, initial, final) for i in range(updates)])


def test_the_numbers_of_the_known_runs():
    section = GUIDE.split("## 7.")[1]
    rows = [row.strip("|").split("|") for row in section.splitlines() if re.match(r"\| [\d,]+ ", row)]
    assert len(rows) == 3
    parser = parser_of("train_audio")
    blr = parser.get_default("blr")
    for clips, batch, epochs, updates, rate, left in (map(number, row) for row in rows):
        assert updates == clips // batch * epochs
        assert rate == pytest.approx(blr * batch / 256)
        assert left / 100 == pytest.approx(rest_of_start(int(updates)), abs=0.0006 if left > 1 else 0.00006)
    assert (parser.get_default("ema_decay_init"), parser.get_default("ema_decay")) == (EMA_INITIAL, EMA_FINAL)


def test_the_numbers_of_a_shorter_run():
    left = number(re.search(r"leave ([\d.]+ %) of a random target", GUIDE)[1]) / 100
    assert left == pytest.approx(rest_of_start(10_000), abs=0.0006)
    initial, final = map(float, re.search(r"`--ema_decay_init ([\d.]+) --ema_decay ([\d.]+)`, and again 0.02 %", GUIDE).groups())
    assert 1 - initial == pytest.approx((1 - EMA_INITIAL) * 292_800 / 10_000, rel=0.05)
    assert 1 - final == pytest.approx((1 - EMA_FINAL) * 292_800 / 10_000, rel=0.05)
    assert rest_of_start(10_000, initial, final) == pytest.approx(0.0002, abs=0.00008)


def test_quickstart_trains_what_it_is_said_to_train():
    script, page = ((ROOT / name).read_text() for name in ("quickstart.sh", "docs/learning.md"))
    models = set(re.findall(r"--model (\w+)", script))
    assert models == {"mae_vit_mini", "mae_vit_small", "m2d_x_vit_mini"}
    clips = re.findall(r"\b(?:SCRATCH|FURTHER)_CLIPS\w*=(\d+)", script)
    assert len(clips) == 4
    for words in (*(f"`{model}`" for model in models), *(f"{int(count):,} clips" for count in clips)):
        assert words in page


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", GUIDE)
    anchors = {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", GUIDE, re.M)}
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors
        elif not link.startswith("https://"):
            assert (ROOT / link).exists(), link
    released = [link for link in links if link.endswith(".zip")]
    assert len(released) == len(set(released)) == 7
    for link in released:
        sizes = parse_sizes_by_name(link.rsplit("/", 1)[1])
        row = next(row for row in GUIDE.splitlines() if link in row)
        assert ("32 kHz" in row) == (sizes.sr == "32k") and row.count(Path(link).stem) == 2
        step = re.search(r"\((\d+) ms\)", row.split("|")[1])
        assert step is None or int(step[1]) == sizes.patch_size[1] * 10


def test_the_linear_probe_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kinds = np.repeat(["dog", "rain"], 20)
    embeddings = np.random.default_rng(0).standard_normal((40, 6)) + 4 * (kinds == "dog")[:, None]
    np.savez("embeddings.npz", files=[f"/your/sounds/{kind}/{i}.wav" for i, kind in enumerate(kinds)], embeddings=embeddings)
    (code,) = BLOCKS["python"]
    exec(compile(code, "guide", "exec"), {})
    assert float(capsys.readouterr().out) > 0.9
