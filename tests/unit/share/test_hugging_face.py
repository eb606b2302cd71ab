"""Exported folders: transformers gives our numbers, every program reads them back, the card tells the truth."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from checkpoint_files import published_name, write_checkpoint, write_fine_tuned

from m2d.checkpoint.weights import CheckpointError, read_weights
from m2d.cli.export import main
from m2d.inference.runtime import RuntimeM2D
from m2d.inference.tag import Tagger
from m2d.share.hugging_face import FILES, modeling_source
from m2d.share.licence import RELEASED

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "tests/helpers/hub_program.py"
NAMES = ["dog bark", "rain", "Glas, splittert", "bell", "door", "wind"]
LENGTHS = (40_000, 16_000, 50_321)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Pre-trained; fine-tuned with stacked features; with flat ones, classes that exclude each other, and no batch norm."""
    folder = tmp_path_factory.mktemp("weights")
    pre_trained = write_checkpoint(folder / "pre-trained")
    stacked = write_fine_tuned(folder / "stacked", classes=6, width=960)
    model = torch.load(pre_trained, weights_only=False)["model"]
    flat = folder / "flat" / published_name() / "best.pth"
    flat.parent.mkdir(parents=True)
    head = {"classifier.weight": torch.randn(6, 192), "classifier.bias": torch.randn(6)}
    state = {f"module.backbone.{name}": tensor for name, tensor in model.items()}
    torch.save({"model": state | head, "classes": NAMES, "single_label": True}, flat)
    return pre_trained, stacked, flat


@pytest.fixture(scope="module")
def folders(checkpoints, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    classes = root / "classes.txt"
    classes.write_text("\n".join(NAMES))
    for name, checkpoint in zip(("pre-trained", "stacked", "flat"), checkpoints, strict=True):
        options = ["--classes", str(classes)] if name == "stacked" else []
        assert main([str(checkpoint), str(root / name), "--to", "hf", *options]) == 0
    return root / "pre-trained", root / "stacked", root / "flat"


@pytest.fixture(scope="module")
def clips():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, generator=generator) * 0.1 for length in LENGTHS]


def run_program(python, folders, clips, folder):
    """What transformers computes of exported folders, offline and without this project on the path."""
    np.savez(folder / "clips.npz", *[clip.numpy() for clip in clips])
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, "-I", PROGRAM, "clips.npz", "out.npz", *folders]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "out.npz")


@torch.no_grad()
def check_results(results, checkpoints, clips):
    audio = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    for i, checkpoint in enumerate(checkpoints):
        runtime = RuntimeM2D(weight_file=checkpoint)
        np.testing.assert_allclose(results[f"{i}/frames"], runtime(audio, lengths=LENGTHS), rtol=0, atol=1e-5)
        expected = runtime.get_scene_embeddings(audio, lengths=LENGTHS)
        np.testing.assert_allclose(results[f"{i}/clips"], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(results[f"{i}/one"], expected[:1], rtol=0, atol=1e-5)
        assert results[f"{i}/layers"] == 12
        if i:
            logits = RuntimeM2D(weight_file=checkpoint, num_classes=6)(audio, lengths=LENGTHS)
            np.testing.assert_allclose(results[f"{i}/logits"], logits, rtol=0, atol=2e-5)
            assert results[f"{i}/labels"].tolist() == NAMES
    assert "takes 16000 Hz, not 8000" in str(results["error"])
    for kind, words in {
        "int16": "floats with full scale ±1; there is one of int16",
        "integers": "there is one of int64",
        "none": "no waveform",
        "no samples": "no waveform",
        "two channels": "of one channel",
    }.items():
        assert words in str(results[f"refused/{kind}"])


@pytest.fixture(scope="module")
def here(folders, clips, tmp_path_factory):
    """The folder in which the installed transformers ran."""
    folder = tmp_path_factory.mktemp("user")
    run_program(sys.executable, folders, clips, folder)
    return folder


def test_transformers_gives_the_runtimes_numbers(here, checkpoints, clips):
    results = np.load(here / "out.npz")
    check_results(results, checkpoints, clips)
    logits = [torch.tensor(results[f"{i}/logits"][0]) for i in (1, 2)]
    np.testing.assert_allclose(results["1/scores"], logits[0].sigmoid(), atol=1e-5)
    np.testing.assert_allclose(results["2/scores"], logits[1].softmax(0), atol=1e-5)


@torch.no_grad()
def test_what_transformers_saves_is_read_back(here, folders):
    """A model fine-tuned by transformers: the sizes are in its config.json alone."""
    saved = read_weights(here / "out.npz.saved")
    assert tuple(saved.spec) == ([80, 208], [16, 16], "16k", "m2d_vit_tiny") and len(saved.classes) == 3
    audio = torch.randn(1, 30_000) * 0.1
    runtimes = [RuntimeM2D.from_pretrained(folder) for folder in (here / "out.npz.saved", folders[0])]
    torch.testing.assert_close(runtimes[0](audio), runtimes[1](audio))
    assert Tagger(here / "out.npz.saved").probabilities(runtimes[0].get_scene_embeddings(audio)).shape == (1, 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["transformers==4.44.2 tokenizers==0.19.1 huggingface_hub==0.36.2", "transformers==5.0.0"])
def test_other_versions_of_transformers(version, checkpoints, folders, clips, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env/bin/python"
    dependencies = ["--no-deps"] if "4.44" in version else []
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *dependencies, *version.split()]
    subprocess.run(pip, check=True)
    packages = next((tmp_path / "env/lib").glob("python3.*/site-packages"))
    (packages / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")  # behind the environment's own
    results = run_program(python, folders, clips, tmp_path)
    assert str(results["version"]) == re.search(r"transformers==(\S+)", version)[1]
    check_results(results, checkpoints, clips)


@torch.no_grad()
def test_every_program_reads_the_folder_back(checkpoints, folders):
    audio = torch.randn(2, 30_000) * 0.1
    for checkpoint, folder in zip(checkpoints, folders, strict=True):
        classes = None if folder is folders[0] else 6
        settings = dict(num_classes=classes)
        ours, theirs = RuntimeM2D.from_pretrained(folder, **settings), RuntimeM2D(weight_file=checkpoint, **settings)
        assert torch.equal(ours(audio), theirs(audio))
    stacked, flat = (read_weights(folder) for folder in folders[1:])
    assert stacked.classes == flat.classes == NAMES and (stacked.single_label, flat.single_label) == (False, True)
    assert Tagger(folders[2]).names == NAMES


def test_the_folders_code_is_not_run(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "shared")
    (tmp_path / "shared/modeling_m2d.py").write_text("raise SystemExit('was run')\n")
    audio = torch.randn(1, 30_000) * 0.1
    ours, theirs = (RuntimeM2D.from_pretrained(folder) for folder in (tmp_path / "shared", folders[0]))
    assert torch.equal(ours(audio), theirs(audio))


def test_the_modeling_file_needs_no_other_of_the_project():
    source = modeling_source()
    assert "AudioModel" in source and "torch.load" not in source  # the parts that are used alone
    imported = set(re.findall(r"^\s*(?:from|import) ([\w.]+)", source, re.M))
    packages = {name.split(".")[0] for name in imported} - sys.stdlib_module_names
    assert packages == {"torch", "timm", "einops", "nnAudio", "numpy", "torchaudio", "transformers"}
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", "-"], input=source.encode())
    assert done.returncode == 0


def test_a_damaged_or_foreign_config(folders, tmp_path):
    weights = (folders[1] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2", "id2label": {"0": "a"}}')
    assert read_weights(tmp_path).classes is None
    (tmp_path / "config.json").write_text('{"model_type": "m2d", "id2label": {"0": 7}}')
    with pytest.raises(CheckpointError, match="config.json: not what m2d export --to hf writes"):
        read_weights(tmp_path)


# ---------------------------------------------------------------- the model card


def card(folder):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_tells_what_the_checkpoint_tells(folders):
    front, text = card(folders[0])
    assert front["pipeline_tag"] == "feature-extraction" and "license" not in front
    for fact in (
        "12 blocks, 192 wide",
        "16000 Hz",
        "80 mel bands x 208 frames (2.08 s)",
        "160 ms",
        "-6.5000, 3.5000",
        "| epoch | 1 |",
    ):
        assert fact in text
    assert "960 numbers per time step" in text and "not stated" in text
    front, text = card(folders[1])
    assert front["pipeline_tag"] == "audio-classification" and "Glas, splittert" in text and "sigmoid" in text
    assert "softmax" in card(folders[2])[1]


@pytest.mark.parametrize("clue", ["folder", "setting", "stated"])
def test_ntts_licence_is_named_where_weights_are_ntts(clue, tmp_path):
    name = "m2d_vit_base-80x208p16x16-221006-mr7"
    assert name.replace("80x208", "80x608") in RELEASED
    path = write_checkpoint(tmp_path / "w")
    saved = torch.load(path, weights_only=False)
    saved["args"] = {"resume": f"/data/{RELEASED[4]}_enconly/checkpoint-300.pth"} if clue == "setting" else {}
    torch.save(saved, path)
    source = path
    if clue == "folder":
        source = tmp_path / f"{published_name()}-from-{RELEASED[4]}" / "w.pth"
        source.parent.mkdir()
        path.rename(source)
    options = ["--licence", "ntt"] if clue == "stated" else []
    assert main([str(source), str(tmp_path / "out"), "--to", "hf", *options]) == 0
    front, text = card(tmp_path / "out")
    assert (front["license"], front["license_name"]) == ("other", "ntt") and "nttcslab/m2d" in front["license_link"]
    assert "NTT publishes them" in text
    if clue != "stated":
        assert f"`{RELEASED[4]}`" in text
        assert main([str(tmp_path / "out"), str(tmp_path / "encoder.pth")]) == 0  # the origin is kept
        assert read_weights(tmp_path / "encoder.pth").args["origin"] == RELEASED[4]


def test_released_names_are_those_of_the_documentation():
    links = re.findall(r"/v[\d.]+/([\w-]+)\.zip", (ROOT / "docs/weights.md").read_text())
    assert len(links) > 10 and {link.removesuffix("_enconly") for link in links} == set(RELEASED)


def test_a_stated_licence(checkpoints, tmp_path):
    assert main([str(checkpoints[0]), str(tmp_path / "out"), "--to", "hf", "--licence", "cc-by-4.0"]) == 0
    front, text = card(tmp_path / "out")
    assert front["license"] == "cc-by-4.0" and "as their owner states" in text


def test_the_licence_of_the_encoder_that_comes_along_is_known(tmp_path, caplog):
    assert main(["tiny", str(tmp_path / "out"), "--to", "hf"]) == 0
    assert card(tmp_path / "out")[0]["license"] == "apache-2.0" and "is not known" not in caplog.text


# ---------------------------------------------------------------- the command


def test_push_prints_a_command_and_uploads_nothing(checkpoints, tmp_path, capsys):
    assert main([str(checkpoints[0]), str(tmp_path / "my model"), "--to", "hf", "--push", "me/it"]) == 0
    assert capsys.readouterr().out == f"hf upload --private me/it '{tmp_path}/my model'\n"


def test_a_folder_is_replaced_on_request_alone(folders, checkpoints, tmp_path, caplog):
    assert sorted(os.listdir(folders[0])) == sorted(FILES)
    (tmp_path / "README.md").write_text("somebody's")
    assert main([str(checkpoints[0]), str(tmp_path), "--to", "hf"]) == 2 and os.listdir(tmp_path) == ["README.md"]
    assert "README.md is there already" in caplog.text
    assert main([str(checkpoints[0]), str(tmp_path), "--to", "hf", "--overwrite"]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["input_size"] == [80, 208]


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (0, ["--single"], "has no classifier"),
        (1, ["--classes", "{tmp}/two.txt"], "names 2 classes; the classifier has 6"),
        (0, ["--licence", "Apache 2"], "an identifier in lower case"),
        ("m2d_vit_base-80x608p16x16-221006-mr7", ["--licence", "mit"], "NTT released under a licence of its own"),
        ("no-sizes", [], "neither the folder's name"),
    ],
)
def test_mistakes_end_in_one_line(source, options, words, checkpoints, tmp_path, caplog):
    (tmp_path / "two.txt").write_text("a\nb")
    path = checkpoints[source] if isinstance(source, int) else tmp_path / source / "w.pth"
    if isinstance(source, str):
        path.parent.mkdir()
        path.write_bytes(checkpoints[0].read_bytes())
    options = [option.format(tmp=tmp_path) for option in options]
    assert main([str(path), str(tmp_path / "out"), "--to", "hf", *options]) == 2
    assert words in caplog.text and not (tmp_path / "out").exists()


def test_flags_of_the_folder_are_refused_elsewhere(checkpoints, tmp_path, capsys):
    for flag, value, form in (("--licence", ["mit"], "encoder"), ("--precision", ["float16"], "hf"), ("--single", [], "encoder")):
        with pytest.raises(SystemExit, match="2"):
            main([str(checkpoints[0]), str(tmp_path / "e"), "--to", form, flag, *value])
        assert f"{flag}: only with --to" in capsys.readouterr().err
