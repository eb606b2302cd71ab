"""benchmarks/clap.py's folds, and the accuracies that benchmarks/clap_folds.py makes of them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest


def loaded(name):
    """A benchmark, under a name of its own: there is a package of the name clap."""
    path = Path(__file__).parents[2] / f"benchmarks/{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


clap, clap_folds = loaded("clap"), loaded("clap_folds")


@pytest.fixture
def run(tmp_path):
    """Two read and two unread names of one task; the third of the sounds is nearest to a name that is no candidate."""
    cosines = [[0.9, 0.1, 0.0, 0.0], [0.8, 0.2, 0.0, 0.0], [0.9, 0.0, 0.5, 0.1], [0.0, 0.0, 0.6, 0.56], [0.0, 0.0, 0.1, 0.4]]
    np.savez(
        tmp_path / "judged.npz",
        cosines=np.array(cosines, np.float16),
        own=[0, 1, 2, 3, 3],
        task=["drums"] * 5,
        names=["kick", "big ride", "ride", "crash"],
        unread=[False, False, True, True],
    )
    return tmp_path


def test_names_are_told_apart_among_their_own_kind(run):
    found = clap_folds.collected([run, run])
    read, unread = found["drums", "read"], found["drums", "unread"]
    assert read.right.tolist() == [True, False] * 2 and read.chance.tolist() == [0.5] * 4
    assert unread.right.tolist() == [True, False, True] * 2 and unread.own.tolist() == ["ride", "crash", "crash"] * 2
    assert unread.among_three.all()
    assert found["drums", "unread, of unread words"].own.tolist() == ["crash", "crash"] * 2
    # Of the three others, none is nearer to the first sound's own name, and one (kick) to the third's.
    assert read.place[:2].tolist() == pytest.approx([0, 1 / 3]) and unread.place[0] == pytest.approx(1 / 3)
    # Without the mean of each name, 0.4 and 0.353, the fourth sound is nearer to its own.
    assert unread.centred.tolist() == [True, True, True] * 2


def test_a_row_has_chance_interval_and_what_is_more_than_the_control(run):
    unread = clap_folds.collected([run])["drums", "unread"]
    cells = [cell.strip() for cell in clap_folds.line(unread, unread).strip("|").split("|")]
    assert cells[:4] == ["drums, unread", "3", "2", "0.500"]
    assert cells[4] == "0.667 (0.500 to 1.000)"  # drawn are ride twice, crash twice, or both
    assert cells[-1] == "+0.000 (+0.000 to +0.000)"


@pytest.mark.parametrize("task", ["instruments", "drums", "numbers", "language"])
def test_every_name_is_unread_once_over_the_folds(task):
    folds = [clap.unread_names(task, fold) for fold in range(8)]
    assert sorted(sum(folds, [])) == sorted(clap.NAMES[task])
    assert min(len(names) for names in folds if names) > 1
    assert clap.unread_names(task, None) == [] == clap.unread_names("words", 0)
