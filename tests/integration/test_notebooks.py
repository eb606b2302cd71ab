"""The notebooks run from top to bottom on their stand-ins, and on weights and sounds of a reader's own."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import soundfile
import torch
from checkpoint_files import mlp_tensors, write_checkpoint, write_clap, write_fine_tuned
from matplotlib.image import imread
from nbclient import NotebookClient
from text_models import bert_folder

from m2d.inference import tag
from m2d.inference.runtime import parse_sizes_by_name
from m2d.models.text_encoder import load_text_encoder

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
#: What each notebook ends with, checked in its own kernel.
CHECKS = {
    "embed_audio": """
        assert frames.shape[0] == 1 and frames.shape[2] == model.cfg.feature_d == 960, frames.shape
        assert torch.equal(clip, frames.mean(dim=1)) and np.allclose(clip[0], embeddings[0])
        assert embeddings.shape == (40, 960) and np.isfinite(embeddings).all()
        assert np.allclose(clip_similarity, clip_similarity.T, atol=1e-5) and np.allclose(np.diag(clip_similarity), 1, atol=1e-5)
        kinds = np.array([file.parent.name for file in files])
        alike = (kinds[:, None] == kinds) & ~np.eye(40, dtype=bool)
        assert clip_similarity[alike].mean() > clip_similarity[kinds[:, None] != kinds].mean() + 0.03
        assert (np.load("embeddings.npz")["embeddings"] == embeddings).all()
    """,
    "tag_audio": """
        from examples.stand_in import SCENE, make_sound
        assert len(names) == probabilities.shape[1] == 10 and ((0 < probabilities) & (probabilities < 1)).all()
        assert len(edges) == len(probabilities) + 1 and abs(edges[-1] - seconds) < 1e-6 and width * seconds / steps < 1.1
        ends = np.cumsum([len(make_sound(name, 99)) for name in SCENE]) / 16000
        assert abs(ends[-1] - seconds) < 1e-3
        true = np.array([names.index(SCENE[np.searchsorted(ends, middle)]) for middle in (edges[:-1] + edges[1:]) / 2])
        assert np.mean(probabilities.argmax(axis=1) == true) > 0.4
        rows = np.arange(len(true))
        assert probabilities[rows, true].mean() > probabilities.mean() + 0.2
    """,
    "finetune_classifier": """
        assert len(train) == 60 and len(held_out) == 20 and not set(train) & set(held_out)
        assert np.mean(losses[-steps:]) < np.mean(losses[:steps]) - 0.3, losses
        assert accuracy >= 0.4, accuracy
        assert matrix.sum() == 20 and np.trace(matrix) == round(20 * accuracy)
        first = torch.from_numpy(waveforms[0])[None]
        assert torch.allclose(again(first), model.cpu()(first), atol=1e-5)
    """,
    "embed_32khz": """
        assert embeddings.shape == (3, 960) and model.sample_rate == 32000
        by_name = dict(zip((file.stem for file in files), shift, strict=True))
        assert by_name["speech"] < 0.06 < 0.1 < by_name["cricket"] < by_name["cymbal"], by_name
        assert 60 < band_of(8000, PRESETS["32k"]) < 70
    """,
    "zeroshot_clap": """
        assert sounds.shape == (40, 192) and names.shape == (10, 192) and places.shape == (50, 2)
        assert accuracy >= 0.35, accuracy
        right = np.eye(10, dtype=bool)
        assert mean_cosines[right].mean() > mean_cosines[~right].mean() + 0.1
        found = np.argsort(-(text_vectors(["rain"]) @ sounds.T)[0])[:3]
        assert "rain" in own[found], own[found]
        distances = np.linalg.norm(places[:40, None] - places[None, 40:], axis=2)
        assert np.mean(np.array(classes)[distances.argmin(axis=1)] == own) >= 0.3
    """,
}
#: Pictures that each notebook shows.
PICTURES = {"embed_audio": 2, "tag_audio": 1, "finetune_classifier": 2, "embed_32khz": 2, "zeroshot_clap": 2}


def dedent(code):
    return "\n".join(line.removeprefix(" " * 8) for line in code.strip("\n").splitlines())


def run_notebook(path, folder, monkeypatch, check):
    """Execute a notebook in an empty folder, with this interpreter, and a last cell of checks; returns it with its outputs."""
    kernel = folder / "jupyter" / "kernels" / "here"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    work = folder / "work"
    work.mkdir()
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder)}
    settings |= {"JUPYTER_PATH": str(folder / "jupyter"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    settings |= {"IPYTHONDIR": str(folder / "ipython")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(dedent(check)))
    NotebookClient(notebook, timeout=300, kernel_name="here", resources={"metadata": {"path": str(work)}}).execute()
    return notebook


def pictures(notebook):
    """The pictures a notebook shows, as arrays `[height, width, colours]`."""
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [imread(io.BytesIO(base64.b64decode(each["image/png"]))) for each in data if "image/png" in each]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_stands(path, tmp_path, monkeypatch):
    notebook = run_notebook(path, tmp_path, monkeypatch, CHECKS[path.stem])
    shown = pictures(notebook)
    assert len(shown) == PICTURES[path.stem]
    for picture in shown:
        assert min(picture.shape[:2]) > 150 and len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50
    said = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    said = [line for output in said for line in output["text"].splitlines() if "IProgress" not in line]
    assert not any("Warning" in line for line in said), said


def settings_given(path, **settings):
    """A notebook's code with settings as a reader would fill them in."""
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    for name, value in settings.items():
        code, found = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", code, flags=re.M)
        assert found == 1, name
    return code


def run_code(path, **settings):
    """Run a notebook's code in this process and its working folder; returns its variables."""
    variables = {}
    exec(compile(settings_given(path, **settings), path.name, "exec"), variables)
    return variables


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Finds a notebook; its pictures go nowhere, its files into an empty folder."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    return lambda name: ROOT / "examples" / f"{name}.ipynb"


def write_sound(path, seconds, rate, channels):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)))
    soundfile.write(path, 0.1 * rng.standard_normal((int(seconds * rate), channels)), rate)


def test_embed_takes_a_readers_weights_and_sounds(notebook, tmp_path):
    weights = write_checkpoint(tmp_path)
    for name, *sound in (("a/short.wav", 0.05, 8000, 1), ("a/long.flac", 45, 16000, 1), ("stereo.ogg", 1, 44100, 2)):
        write_sound(tmp_path / "mine" / name, *sound)
    done = run_code(notebook("embed_audio"), WEIGHTS=str(weights.parent), AUDIO=str(tmp_path / "mine"))
    assert done["names"] == ["a/long", "a/short", "stereo"] and done["embeddings"].shape == (3, 960)
    assert done["frames"].shape[1] == 188 and done["model"].cfg.weight_file == str(weights.parent)


def test_embed_takes_a_single_sound(notebook, tmp_path):
    write_sound(tmp_path / "mine" / "only.wav", 0.02, 16000, 1)
    done = run_code(notebook("embed_audio"), WEIGHTS=str(write_checkpoint(tmp_path)), AUDIO=str(tmp_path / "mine"))
    assert np.isfinite(done["clip_similarity"]).all() and done["embeddings"].shape == (1, 960)


def test_tag_takes_a_readers_weights_classes_and_sound(notebook, tmp_path):
    weights = write_fine_tuned(tmp_path, 3, 960)
    (tmp_path / "labels.csv").write_text('index,mid,display_name\n0,/m/z,"Last, of all"\n1,/m/a,First\n2,/m/k,Middle\n')
    write_sound(tmp_path / "street.flac", 65.3, 44100, 2)
    paths = dict(WEIGHTS=str(weights), CLASSES=str(tmp_path / "labels.csv"), AUDIO=str(tmp_path / "street.flac"))
    done = run_code(notebook("tag_audio"), **paths)
    assert done["names"] == ["First", "Middle", "Last, of all"]
    assert done["probabilities"].shape == (len(done["edges"]) - 1, 3) and abs(done["edges"][-1] - 65.3) < 0.01


def test_a_fine_tuned_classifier_is_a_tagger(notebook, tmp_path, capsys):
    for kind in ("high", "low"):
        for i in range(4):
            write_sound(tmp_path / "mine" / kind / f"{i}.wav", 0.3 + i / 2, 22050, 1)
    settings = dict(WEIGHTS=str(write_checkpoint(tmp_path)), AUDIO=str(tmp_path / "mine"), EPOCHS=2, BATCH_SIZE=50)
    done = run_code(notebook("finetune_classifier"), **settings)
    assert len(done["losses"]) == 2 and done["matrix"].sum() == 2 and done["LEARNING_RATE"] == 5e-5
    saved = tmp_path / done["saved"]
    sound = str(tmp_path / "mine" / "high" / "3.wav")
    capsys.readouterr()
    assert tag.main([sound, "--weights", str(saved), "--classes", str(saved / "classes.txt"), "--single"]) == 0
    assert re.search(r"\d\.\d+  high\n|\d\.\d+  low\n", capsys.readouterr().out)


def test_32_khz_takes_a_readers_weights_and_sounds(notebook, tmp_path):
    for name, *sound in (("one.wav", 1, 48000, 2), ("sub/two.wav", 2.5, 32000, 1)):
        write_sound(tmp_path / "mine" / name, *sound)
    weights = write_checkpoint(tmp_path, size=(80, 608), rate="p32k")
    done = run_code(notebook("embed_32khz"), WEIGHTS=str(weights), AUDIO=str(tmp_path / "mine"))
    assert done["shift"].shape == (2,) and (done["shift"] > 0).all()


def test_32_khz_refuses_weights_of_another_rate(notebook, tmp_path):
    with pytest.raises(ValueError, match="16k model: choose weights with p32k"):
        run_code(notebook("embed_32khz"), WEIGHTS=str(write_checkpoint(tmp_path)))


def test_classes_in_words_takes_a_readers_weights_text_encoder_and_sounds(notebook, tmp_path):
    for name, *sound in (("cat/long.flac", 3, 44100, 2), ("a_dog/short.wav", 0.05, 16000, 1), ("a_dog/other.wav", 1, 8000, 1)):
        write_sound(tmp_path / "mine" / name, *sound)
    projectors = mlp_tensors(192) | mlp_tensors(192, "text_proj", inputs=32)
    paths = dict(AUDIO=str(tmp_path / "mine"), TEXT_ENCODER=str(bert_folder(tmp_path / "bert")))
    weights = write_clap(tmp_path, projectors)
    done = run_code(notebook("zeroshot_clap"), WEIGHTS=str(weights), PROMPT="the sound of {}", **paths)
    assert done["classes"] == ["a_dog", "cat"] and list(done["own"]) == ["a_dog", "a_dog", "cat"]
    expected = done["model"].encode_clap_text(["the sound of a dog", "the sound of cat"])
    np.testing.assert_allclose(done["names"], torch.nn.functional.normalize(expected, dim=1), rtol=1e-5)
    assert np.isfinite(done["cosines"]).all() and done["accuracy"] in (0, 1 / 3, 2 / 3, 1)


def test_classes_in_words_takes_one_sound_and_the_text_encoder_in_the_weights(notebook, tmp_path):
    write_sound(tmp_path / "mine" / "dog" / "only.wav", 1, 16000, 1)
    bert = bert_folder(tmp_path / "bert", width=192, heads=3)
    text = load_text_encoder(str(bert), pooling="cls").text_encoder.state_dict()
    weights = write_clap(tmp_path, mlp_tensors(192), extras="p16kpBpTI", prefix="backbone.", text=text)
    (bert / "model.safetensors").unlink()
    done = run_code(notebook("zeroshot_clap"), WEIGHTS=str(weights), AUDIO=str(tmp_path / "mine"), TOKENIZER=str(bert))
    assert done["accuracy"] == 1 and np.isfinite(done["places"]).all()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 20_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 25
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_words_name_weights_and_files_that_exist(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    links = re.findall(r"\[([^]]+)\]\(([^)]+)\)", text)
    named = re.findall(r"\bm2d_\w+-\d+x[\w-]+", text)
    listed = (ROOT / "docs/weights.md").read_text()
    assert named and all(name in listed for name in named), named
    assert "NTT's licence, which is not this project's" in text and re.search(r'pip install -e "?\.', text)
    for name, link in links:
        if not link.endswith(".zip"):
            assert link.startswith("https://") or (path.parent / link).exists(), link
            continue
        assert re.fullmatch(rf"https://github.com/nttcslab/m2d/releases/download/v0\.\d\.0/{re.escape(name)}\.zip", link)
        assert (parse_sizes_by_name(name).sr == "32k") == ("p32k" in name)
