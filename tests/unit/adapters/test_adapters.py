"""The adapters to benchmarks, judged by the benchmarks' own checkers where these can be installed."""

import json
import sys
import tarfile
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import xares.task
from checkpoint_files import write_checkpoint
from recordings import melody
from xares.audio_encoder_checker import check_audio_encoder

from m2d.adapters import hear
from m2d.adapters.pretrained_sed import M2DWrapper
from m2d.adapters.xares import M2DEncoder
from m2d.inference.runtime import RuntimeM2D


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("weights")))


@pytest.fixture
def validate_model(monkeypatch):
    """hearvalidator's ValidateModel; of TensorFlow it only asks whether a model is a tf.Module."""
    tensorflow = ModuleType("tensorflow")
    tensorflow.Module = type("Module", (), {})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow", tensorflow)
        from hearvalidator.validate import ValidateModel
    return ValidateModel


@pytest.mark.filterwarnings("ignore:We suggest a interval")
def test_hear_validator_accepts_the_module(validate_model, weights, capsys):
    validate_model("m2d.adapters.hear", weights, device="cpu")()
    assert "Interval between timestamps is 160.0ms" in capsys.readouterr().out


def test_hear_times_are_the_centres_of_the_time_steps(weights):
    model = hear.load_model(weights)
    audio = torch.from_numpy(melody(3.0, 16000))[None]
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    assert times[0, :3].tolist() == [80, 240, 400]
    torch.testing.assert_close(embeddings, model.runtime.encode(audio, average_per_time_frame=True))
    assert not embeddings.requires_grad


def test_hear_takes_a_model_of_32_khz_at_its_own_rates(tmp_path):
    model = hear.load_model(str(write_checkpoint(tmp_path, rate="p32k")))
    assert model.sample_rate == 44100
    audio = torch.from_numpy(melody(3.0, 44100))[None]
    expected = model.runtime.get_scene_embeddings(audio, sample_rate=44100)
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model), expected)


def test_hear_and_xares_name_the_missing_weights(monkeypatch):
    monkeypatch.delenv("M2D_WEIGHTS", raising=False)
    with pytest.raises(ValueError, match="--model"):
        hear.load_model()
    with pytest.raises(ValueError, match="M2D_WEIGHTS"):
        M2DEncoder()


def test_xares_checker_accepts_the_encoder(monkeypatch, weights):
    from xares.utils import attr_from_py_path

    monkeypatch.setenv("M2D_WEIGHTS", weights)
    encoder = attr_from_py_path("m2d.adapters.xares", endswith="Encoder")()
    assert check_audio_encoder(encoder)
    assert encoder.hop_size_in_ms == 160 and encoder(torch.zeros(16000)).shape == (1, 7, encoder.output_dim)


def tone(frequency, rate, seconds):
    """A sine wave."""
    return 0.3 * np.sin(2 * np.pi * frequency * np.arange(rate * seconds) / rate)


def write_shard(path, tones):
    """A shard of a X-ARES data set: sounds (class, frequency) with a label each."""
    with tarfile.open(path, "w") as tar:
        for i, (label, frequency) in enumerate(tones):
            wav = path.with_suffix(".wav")
            soundfile.write(wav, tone(frequency, 16000, 1), 16000)
            meta = path.with_suffix(".json")
            meta.write_text(json.dumps({"label": label}))
            tar.add(wav, f"clip{i}.wav")
            tar.add(meta, f"clip{i}.json")


def test_a_whole_xares_task(monkeypatch, tmp_path, weights):
    """Three folds of two kinds of tones: encoded, linear layer and neighbours, by X-ARES itself."""

    def load(path):  # torchaudio's own needs torchcodec and FFmpeg
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(audio.T), rate

    monkeypatch.setattr("torchaudio.load", load)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr("xares.common.setup_global_logger", lambda: None)
    folds = [1, 2, 3]
    config = xares.task.TaskConfig(
        name="tones",
        encoder=M2DEncoder(weights),
        env_root=tmp_path,
        k_fold_splits=folds,
        label_processor=lambda entry: entry["label"],
        output_dim=2,
        num_encoder_workers=0,
        epochs=10,
        learning_rate=1e-2,
        batch_size_train=4,
    )
    task = xares.task.XaresTask(config)
    random = np.random.RandomState(0)
    for fold in folds:
        tones = [(i % 2, (300, 2500)[i % 2] * random.uniform(0.9, 1.1)) for i in range(12)]
        write_shard(task.env_dir / f"wds-audio-fold-{fold}-00000.tar", tones)
    (task.env_dir / config.xares_settings.audio_ready_filename).touch()
    (linear, _), (neighbours, _) = task.run()
    assert linear > 0.9 and neighbours > 0.9


def test_a_whole_mteb_task(weights):
    """Two kinds of tones at two rates, by mteb's classification of audio."""
    mteb = pytest.importorskip("mteb", reason="mteb needs Python 3.11")
    from datasets import Dataset, DatasetDict
    from mteb.mocks.mock_tasks import MockAudioClassification

    from m2d.adapters.mteb import M2DEncoder as Encoder

    class Tones(MockAudioClassification):
        n_experiments = 2

        def load_data(self, **_):  # without datasets' Audio, which needs torchcodec and FFmpeg
            rows = [(i % 2, (8000, 16000)[i // 2 % 2], 1 + i % 3) for i in range(16)]
            audio = [{"array": tone((300, 2500)[kind], rate, seconds), "sampling_rate": rate} for kind, rate, seconds in rows]
            rows = Dataset.from_dict({"audio": audio, "label": [kind for kind, _, _ in rows]})
            self.dataset = DatasetDict({"train": rows, "test": rows})
            self.data_loaded = True

    model = Encoder(weights, device="cpu")
    assert isinstance(model, mteb.EncoderProtocol)
    result = mteb.evaluate(model, Tones(), cache=None)
    assert result.task_results[0].get_score() > 0.9


def test_mteb_clips_of_any_length_and_rate_are_as_if_alone(weights):
    pytest.importorskip("mteb", reason="mteb needs Python 3.11")
    from m2d.adapters.mteb import M2DEncoder as Encoder

    class Clips(torch.utils.data.Dataset):
        features = {"audio": None}
        items = [(melody(seconds, rate), rate) for seconds, rate in ((0.5, 16000), (3.0, 16000), (1.0, 44100))]

        def __len__(self):
            return len(self.items)

        def __getitem__(self, row):
            return {"audio": {"array": self.items[row][0], "sampling_rate": self.items[row][1]}}

    model = Encoder(weights, device="cpu")
    embeddings = model.encode(torch.utils.data.DataLoader(Clips(), batch_size=3), task_metadata=None, hf_split="", hf_subset="")
    runtime = RuntimeM2D(weight_file=weights)
    for row, (clip, rate) in enumerate(Clips.items[:2]):
        alone = runtime.get_scene_embeddings(torch.from_numpy(clip)[None], sample_rate=rate)
        np.testing.assert_allclose(embeddings[row], alone[0].detach(), atol=1e-5)
    assert np.isfinite(embeddings[2]).all() and embeddings.shape == (3, runtime.cfg.feature_d)
    with pytest.raises(ValueError, match="audio"):
        model.encode(SimpleNamespace(dataset=SimpleNamespace(features={"text": None})))


def test_pretrained_sed_gets_features_per_time_step_and_parameters_by_depth(weights):
    model = M2DWrapper(weights)
    lms = model.mel_forward(torch.from_numpy(melody(2.0, 16000))[None])
    features = model(lms)
    assert lms.shape[:3] == (1, 1, 80) and features.shape == (1, 13, model.embed_dim)
    groups = model.separate_params()
    assert len(groups) == len(model.m2d.backbone.blocks) and all(groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of_group = [{names[id(parameter)] for parameter in group} for group in groups]
    assert any("norm" in name and "blocks" not in name for name in of_group[0])
    assert any("patch_embed" in name for name in of_group[-1])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(name for group in of_group for name in group) == sorted(trained)
    features.sum().backward()
    assert all(parameter.grad is not None for group in groups for parameter in group)
