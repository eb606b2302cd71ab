"""Lists of made-up clips."""

import numpy as np
import pytest


@pytest.fixture
def make_list(tmp_path):
    """Write clips of these lengths, not in the order of their names, and their CSV."""

    def make(lengths, kind="npy"):
        rng = np.random.default_rng(len(lengths))
        rows = ["file_name,label,weight"]
        for i, length in enumerate(lengths):
            name = f"{(i * 5) % 7}/{i}.{kind}"
            (tmp_path / name).parent.mkdir(exist_ok=True)
            lms = rng.normal(-7, 4, (1, 80, length)).astype(np.float32)
            if kind == "npy":
                np.save(tmp_path / name, lms)
            else:
                features = rng.normal(size=(1, length // 2, 6)).astype(np.float32)
                np.savez(tmp_path / name, lms, features, max(1, length // 2 - i))
            rows.append(f'{name},"c{i % 3},c{i % 2}",{i + 1}')
        csv = tmp_path / "clips.csv"
        csv.write_text("\n".join(rows) + "\n")
        return csv

    return make
