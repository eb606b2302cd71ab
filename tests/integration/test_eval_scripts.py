"""The shell scripts that hand checkpoints to EVAR, run against stand-ins that write down how they were called."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EVAL_SCRIPTS = ("quick_eval.sh", "all_eval.sh")
FT_SCRIPTS = {
    "as2m": "as ,dur_frames=1001 --lr=2.0 --freq_mask 30 --time_mask 192 --training_mask 0.5 --mixup 0.5 --rrc False "
    "--epochs 70 --warmup_epochs 15 --optim lars --batch_size 64 --data_path LMS",
    "as20k": "as20k ,dur_frames=1001 --lr=0.5 --freq_mask 30 --time_mask 192 --training_mask 0.5 --mixup 0.3 --rrc True "
    "--batch_size 64",
    "esc50": "esc50 ,dur_frames=501,freeze_embed=True --lr=0.5 --freq_mask 15 --time_mask 48 --training_mask 0.5 "
    "--mixup 0.0 --rrc True",
    "spc": "spcv2  --lr=0.5 --freq_mask 30 --time_mask 48 --training_mask 0.5 --mixup 0.3 --rrc True",
    "vc1": "vc1 ,dur_frames=821 --optim adamw --lr=0.0005 --freq_mask 30 --time_mask 48 --training_mask 0.0 --mixup 0.0 "
    "--rrc False --epochs 50 --batch_size 64",
}
STAND_IN = f"""#!{sys.executable}
import json, os, sys
call = dict(argv=[os.path.basename(sys.argv[0]), *sys.argv[1:]], cwd=os.getcwd(), gpu=os.environ.get("CUDA_VISIBLE_DEVICES"))
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps(call), file=calls)
sys.exit(sys.argv[1:3].count(os.environ.get("FAILS")))
"""


@pytest.fixture
def project(tmp_path):
    """A copy of the project's scripts, and its library, in a folder with a space in its name."""
    folder = tmp_path / "my m2d"
    (folder / "util").mkdir(parents=True)
    for name in EVAL_SCRIPTS:
        shutil.copy(ROOT / name, folder / name)
    for path in [*(ROOT / "util").glob("*.sh"), ROOT / "util" / "evar-requirements.txt"]:
        shutil.copy(path, folder / "util" / path.name)
    (folder / "m2d").symlink_to(ROOT / "m2d")
    return folder


def add_evar(project: Path) -> Path:
    evar = project / "evar"
    (evar / "config").mkdir(parents=True)
    (evar / "config" / "m2d.yaml").touch()
    for name in ("lineareval.py", "2pass_lineareval.py", "finetune.py", "summarize.py"):
        (evar / name).write_text(STAND_IN)
    return evar


def checkpoint(folder: Path, epoch: str = "300") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint-{epoch}.pth"
    path.touch()
    return path


def bash(*args, cwd: Path, **env) -> tuple[subprocess.CompletedProcess, list[dict]]:
    calls = cwd / "calls.jsonl"
    calls.unlink(missing_ok=True)
    environment = {**os.environ, "CALLS": str(calls), "PYTHON": sys.executable, **env}
    done = subprocess.run(["bash", *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True)
    return done, [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


QUICK = [("cremad", 16), ("gtzan", 16), ("spcv2", 64), ("esc50", 64)]
ALL = [*QUICK, ("us8k", 64), ("vc1", 64), ("voxforge", 64), ("nsynth", 64), ("surge", 64)]


@pytest.mark.parametrize(
    ("script", "program", "tasks"),
    [("quick_eval.sh", "lineareval.py", QUICK), ("all_eval.sh", "2pass_lineareval.py", ALL)],
)
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("m2d_vit_base-80x608p16x16p16k-240514-mr.7", "config/m2d.yaml"),
        ("x-80x608p16x16p32k-240413", "config/m2d_32k.yaml"),
        ("m2d_clap_vit_base-80x608p16x16p32kpA", "config/m2d_32k.yaml"),
        ("m2d_clap_vit_base-80x608p16x16p16kpBpTI-like-p32k-x", "config/m2d.yaml"),
    ],
)
def test_evaluation_calls(project, tmp_path, script, program, tasks, name, config):
    evar = add_evar(project)
    ckpt = checkpoint(tmp_path / "my runs" / name)
    done, calls = bash(project / script, ckpt.relative_to(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = [[program, config, task, f"batch_size={size},weight_file={ckpt}"] for task, size in tasks]
    assert [call["argv"] for call in calls] == [*expected, ["summarize.py", str(ckpt)]]
    assert {call["cwd"] for call in calls} == {str(evar)}
    assert {call["gpu"] for call in calls} == {"0"}


@pytest.mark.parametrize("script", EVAL_SCRIPTS)
def test_without_evar_two_lines_and_status_1(project, tmp_path, script):
    done, calls = bash(project / script, checkpoint(tmp_path / "run"), cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr == "" and calls == []
    assert len(lines) == 2 and f"{project}/evar" in lines[0]
    assert f"cd '{project}' && bash util/setup_evar.sh" in lines[1]


@pytest.mark.parametrize("script", [*EVAL_SCRIPTS, *(f"util/ft-{name}.sh" for name in FT_SCRIPTS)])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_says_how_a_script_is_called(project, tmp_path, script, flag):
    done, calls = bash(project / script, flag, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and calls == []
    assert "usage: bash " in done.stdout and len(done.stdout.splitlines()) <= 4


def test_the_first_task_that_fails_ends_the_evaluation(project, tmp_path):
    add_evar(project)
    done, calls = bash(project / "quick_eval.sh", checkpoint(tmp_path / "run"), cwd=tmp_path, FAILS="gtzan")
    assert done.returncode != 0
    assert [call["argv"][2] for call in calls] == ["cremad", "gtzan"]


def test_random_weights_need_no_file(project, tmp_path):
    add_evar(project)
    done, calls = bash(project / "quick_eval.sh", "m2d_vit_base-80x208p16x16-random", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert calls[-1]["argv"][1] == f"{tmp_path}/m2d_vit_base-80x208p16x16-random"


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ((), 2, "usage"),
        (("a", "b"), 2, "usage"),
        (("none.pth",), 1, "no such checkpoint"),
        (("a,b/checkpoint-300.pth",), 1, "comma"),
    ],
)
@pytest.mark.parametrize("script", EVAL_SCRIPTS)
def test_wrong_arguments_of_an_evaluation(project, tmp_path, script, args, status, message):
    add_evar(project)
    checkpoint(tmp_path / "a,b")
    done, calls = bash(project / script, *args, cwd=tmp_path)
    assert done.returncode == status and calls == []
    assert message in done.stderr and script in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", FT_SCRIPTS)
def test_fine_tuning_calls(project, tmp_path, name):
    evar = add_evar(project)
    run, lms = tmp_path / "my runs" / "m2d_vit_base-80x608p16x16-221006-mr7", tmp_path / "my lms"
    lms.mkdir()
    weights = [checkpoint(run, epoch) for epoch in ("200", "300")]
    done, calls = bash(project / "util" / f"ft-{name}.sh", run, 3, 42, 200, 300, cwd=evar, LMS_AUDIOSET=str(lms))
    assert done.returncode == 0, done.stderr
    task, options, *flags = FT_SCRIPTS[name].split(" ")
    flags = [str(lms) if flag == "LMS" else flag for flag in flags]
    expected = [
        ["finetune.py", "config/m2d.yaml", task, f"weight_file={weight},encoder_only=True{options}", *flags, "--seed", str(seed)]
        for weight in weights
        for seed in (43, 44, 45)
    ]
    assert [call["argv"] for call in calls] == expected


def test_fine_tuning_at_32_khz_and_with_a_seed_that_starts_with_zero(project, tmp_path):
    evar = add_evar(project)
    run = tmp_path / "m2d_as_vit_base-80x608p16x16p32k-240413_enconly"
    checkpoint(run, "best")
    done, calls = bash(project / "util" / "ft-spc.sh", run, 1, "08", "best", cwd=evar)
    assert done.returncode == 0, done.stderr
    assert calls[0]["argv"][1] == "config/m2d_32k.yaml" and calls[0]["argv"][-1] == "9"


@pytest.mark.parametrize("name", FT_SCRIPTS)
def test_fine_tuning_outside_evar_says_where_to_go(project, tmp_path, name):
    checkpoint(tmp_path)
    done, calls = bash(project / "util" / f"ft-{name}.sh", tmp_path, 3, 42, 300, cwd=tmp_path, LMS_AUDIOSET=str(tmp_path))
    assert done.returncode == 1 and calls == []
    assert "cd evar" in done.stderr and "bash util/setup_evar.sh" in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ((), 2, "usage"),
        (("RUN", 3, 42), 2, "usage"),
        (("RUN", "three", 42, 300), 2, "usage"),
        (("RUN", 3, 42, 300, 301), 1, "checkpoint-301.pth: there is no such"),
        (("A,B", 3, 42, 300), 1, "comma"),
    ],
)
def test_wrong_arguments_of_a_fine_tuning(project, tmp_path, args, status, message):
    evar = add_evar(project)
    checkpoint(tmp_path / "RUN")
    checkpoint(tmp_path / "A,B")
    args = [tmp_path / each if each in ("RUN", "A,B") else each for each in args]
    done, calls = bash(project / "util" / "ft-esc50.sh", *args, cwd=evar)
    assert done.returncode == status and calls == []
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_as2m_asks_for_its_data(project, tmp_path):
    evar = add_evar(project)
    run = checkpoint(tmp_path / "run").parent
    done, calls = bash(project / "util" / "ft-as2m.sh", run, 1, 42, 300, cwd=evar)
    assert done.returncode == 1 and calls == []
    assert "LMS_AUDIOSET" in done.stderr


ODD = "__import__('os').system('touch marker')#"


@pytest.mark.parametrize("name", [ODD, "w (1)", "a[0]", "a{b}", 'a"b', "a`b`", "a;b", "a\\b", "a\nb"])
def test_paths_that_evar_would_evaluate_are_refused(project, tmp_path, name):
    evar = add_evar(project)
    for script, args, cwd in (
        ("quick_eval.sh", [f"{name}/checkpoint-1.pth"], tmp_path),
        ("util/ft-esc50.sh", [name, 1, 0, 1], evar),
    ):
        checkpoint(cwd / name, "1")
        done, calls = bash(project / script, *args, cwd=cwd)
        assert done.returncode == 1 and calls == [] and "EVAR would evaluate" in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.rglob("marker"))


def test_an_odd_name_of_an_epoch_is_refused(project, tmp_path):
    evar = add_evar(project)
    checkpoint(tmp_path / "run", "f(1)")
    done, calls = bash(project / "util/ft-esc50.sh", tmp_path / "run", 1, 0, "f(1)", cwd=evar)
    assert done.returncode == 1 and calls == [] and "EVAR would evaluate" in done.stderr


def test_evar_gets_absolute_paths(project, tmp_path):
    evar = add_evar(project)
    path = checkpoint(evar / "-run=1 é", "1")
    done, calls = bash(project / "util/ft-esc50.sh", "-run=1 é", 1, 0, 1, cwd=evar)
    assert done.returncode == 0, done.stderr
    assert calls[0]["argv"][3].startswith(f"weight_file={path},")


def test_the_command_that_sets_up_evar_can_be_pasted(project, tmp_path):
    odd = project.rename(tmp_path / "it's $(touch marker)")
    done, _ = bash(odd / "quick_eval.sh", checkpoint(tmp_path / "run"), cwd=tmp_path)
    command = done.stdout.splitlines()[1].removeprefix("Set it up by: ").replace("bash util/setup_evar.sh", "pwd")
    pasted = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert pasted.stdout == f"{odd}\n" and not list(tmp_path.rglob("marker"))


def test_cdpath_leads_no_script_elsewhere(project, tmp_path):
    add_evar(project)
    (tmp_path / "elsewhere" / project.name).mkdir(parents=True)
    script = f"{project.name}/quick_eval.sh"
    done, calls = bash(script, checkpoint(tmp_path / "run"), cwd=tmp_path, CDPATH=str(tmp_path / "elsewhere"))
    assert done.returncode == 0 and len(calls) == 5, done.stderr


def plant(folder: Path, *names: str) -> None:
    """Modules in a working folder that say when they are run."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text("from pathlib import Path\nPath('marker').touch()\n")


def test_modules_of_the_working_folder_are_not_run(project, tmp_path):
    here = tmp_path / "here"
    plant(here, "ast", "venv", "pip", "sysconfig", "argparse", "ensurepip")
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml"):
        (project / name).touch()
    path = add_downloaders(tmp_path, 'echo "x = 1" > "$2"')
    done, _ = bash(project / "util" / "setup_evar.sh", cwd=here, PATH=path)
    assert done.returncode == 0, done.stderr
    script = f"set -euo pipefail; source '{project}/util/setup_venv.sh'; install() {{ pip_install --help; }}; setup_venv"
    environment = {name: value for name, value in os.environ.items() if name != "M2D_PYTHON"}
    done = subprocess.run(["bash", "-c", script], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (project / ".venv/bin/python").exists() and not (here / "marker").exists()


def add_downloaders(tmp_path: Path, curl_sends: str, git_works: bool = True) -> str:
    """Stand-ins of git and curl; returns a PATH that finds them first."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    clone = 'for to; do :; done; mkdir -p "$to/evar/utils"; touch "$to/lineareval.py"' if git_works else "exit 128"
    (folder / "git").write_text(f'#!/bin/bash\necho "git $*" >> "$CALLS.txt"\n{clone}\n')
    to_o = "while [[ $1 != -o ]]; do shift; done"
    (folder / "curl").write_text(f'#!/bin/bash\necho "curl $*" >> "$CALLS.txt"\n{to_o}\n{curl_sends}\n')
    for path in folder.iterdir():
        path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_setting_up_evar_and_again(project, tmp_path):
    path = add_downloaders(tmp_path, 'echo "x = 1" > "$2"')
    done, _ = bash(project / "util" / "setup_evar.sh", cwd=tmp_path, PATH=path)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls.jsonl.txt").read_text()
    assert f"git clone https://github.com/nttcslab/eval-audio-repr.git {project}/evar\n" in calls
    base = "https://raw.githubusercontent.com/daisukelab/"
    for url, name in {
        "general-learning/master/MLP/torch_mlp_clf2.py": "utils/torch_mlp_clf2.py",
        "sound-clf-pytorch/master/for_evar/sampler.py": "sampler.py",
        "sound-clf-pytorch/master/for_evar/cnn14_decoupled.py": "cnn14_decoupled.py",
    }.items():
        assert base + url in calls
        assert (project / "evar" / "evar" / name).read_text() == "x = 1\n"
    done, _ = bash(project / "util" / "setup_evar.sh", cwd=tmp_path, PATH=path)
    assert done.returncode == 0 and (tmp_path / "calls.jsonl.txt").read_text() == calls
    assert f"EVAR's packages are installed in {sys.prefix}" in done.stdout


def evar_packages() -> list[str]:
    """The names in util/evar-requirements.txt."""
    lines = (ROOT / "util" / "evar-requirements.txt").read_text().splitlines()
    return [re.match(r"[\w-]+", line)[0] for line in lines if not line.startswith("#")]


def test_what_evar_imports_is_listed_and_there():
    """EVAR's modules of its own list; all but PyYAML and scikit-learn are imported by the package's name."""
    names = evar_packages()
    assert {"torchaudio", "torchlibrosa", "easydict", "librosa"} <= set(names)
    for name in names:
        importlib.import_module({"PyYAML": "yaml", "scikit-learn": "sklearn"}.get(name, name))


def test_evaluation_goes_as_far_as_the_missing_data_set(project, tmp_path):
    """As after quickstart.sh and setup_evar.sh: EVAR's imports succeed, and its own message about the data ends the run."""
    evar = add_evar(project)
    imports = ["torchaudio", "torchlibrosa", "easydict", "librosa", "fire", "yaml", "sklearn", "nnAudio", "timm", "einops"]
    program = f"import sys; sys.path.append('..'); import {', '.join(imports)}; from m2d.runtime_audio import RuntimeM2D\n"
    (evar / "lineareval.py").write_text(program + "raise FileNotFoundError('work/16k/cremad')\n")
    done, _ = bash(project / "quick_eval.sh", checkpoint(tmp_path / "run"), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "FileNotFoundError: work/16k/cremad"


@pytest.mark.parametrize(
    ("variables", "used"),
    [
        ({}, "project/.venv/bin/python"),
        ({"PYTHON": "other"}, "other"),
        ({"VIRTUAL_ENV": "active"}, "bin/python"),
    ],
)
def test_the_environment_in_use_is_found(project, tmp_path, variables, used):
    """quickstart.sh's is taken where none is activated or named."""
    add_evar(project)
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON")}
    places = {"other": tmp_path / "other", "bin/python": tmp_path / "bin" / "python", "project": project / ".venv/bin/python"}
    for place in places.values():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f'#!/bin/sh\necho "$0" >> "{tmp_path}/used.txt"\n')
        place.chmod(0o755)
    variables = {name: str(places.get(value, tmp_path / value)) for name, value in variables.items()}
    environment |= {"PATH": f"{tmp_path}/bin:{environment['PATH']}", **variables}
    command = ["bash", str(project / "quick_eval.sh"), str(checkpoint(tmp_path / "run"))]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert set((tmp_path / "used.txt").read_text().split("\n")[:-1]) == {str(places.get(used, project / ".venv/bin/python"))}


def test_setting_up_evar_names_what_failed_and_tries_that_again(project, tmp_path):
    sends = 'case "$2" in *sampler*) exit 22;; *cnn14*) echo "<html>" > "$2";; *) echo "x = 1" > "$2";; esac'
    done, _ = bash(project / "util" / "setup_evar.sh", cwd=tmp_path, PATH=add_downloaders(tmp_path, sends))
    assert done.returncode == 1
    assert "evar/sampler.py: " in done.stderr and "could not be downloaded" in done.stderr
    assert "evar/cnn14_decoupled.py: " in done.stderr and "not a Python file" in done.stderr
    assert "torch_mlp" not in done.stderr
    assert sorted(p.name for p in (project / "evar" / "evar").rglob("*") if p.is_file()) == ["torch_mlp_clf2.py"]
    done, _ = bash(project / "util" / "setup_evar.sh", cwd=tmp_path, PATH=add_downloaders(tmp_path, 'echo "x = 1" > "$2"'))
    assert done.returncode == 0, done.stderr
    assert "have evar/utils/torch_mlp_clf2.py" in done.stdout and "got evar/sampler.py" in done.stdout


def test_setting_up_evar_without_network_or_over_another_folder(project, tmp_path):
    done, _ = bash(project / "util" / "setup_evar.sh", cwd=tmp_path, PATH=add_downloaders(tmp_path, "exit 6", git_works=False))
    assert done.returncode == 1 and "could not be cloned" in done.stderr
    (project / "evar").mkdir()
    done, _ = bash(project / "util" / "setup_evar.sh", cwd=tmp_path, PATH=add_downloaders(tmp_path, "exit 6"))
    assert done.returncode == 1 and "Move it away" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    scripts = [*EVAL_SCRIPTS, *(f"util/ft-{name}.sh" for name in FT_SCRIPTS), "util/evar-common.sh", "util/setup_evar.sh"]
    done = subprocess.run(["shellcheck", "-x", "-P", ".", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
