"""What the compiled step moves through a GPU's memory, by the compiler's own code for one: nothing is read or written twice."""

import pytest

pytest.importorskip("triton")
from benchmarks import traffic


@pytest.mark.parametrize("fp8", [False, True])
def test_a_trained_block_moves_each_value_as_often_as_is_needed(fp8):
    part = traffic.PARTS[2]
    graphs = traffic.traced(part, 512, fp8)
    assert [kind for kind, *_ in graphs] == ["forward", "backward"]
    passes = {kind: traffic.kernels(kind, *graph) for kind, *graph in graphs}
    values = 512 * part.tokens * part.width
    # Forward: norms of the sum with what the last block adds, 12 and 14; GELU 16. Float8 adds a byte for each norm's output
    # and takes one of each of the GELU's four times as many.
    moved = sum(size for _, size in passes["forward"]) / values
    assert moved == pytest.approx(12 + 14 + 16 + (1 + 1 - 4 if fp8 else 0), rel=0.02)
    # Backward: GELU 32, norms 14 and 16, a copy in half precision 6, sums for biases 2, 2 and 6.
    moved = sum(size for _, size in passes["backward"]) / values
    assert moved == pytest.approx(32 + 14 + 16 + 6 + 2 + 2 + 6 + (1 if fp8 else 0), rel=0.02)
    names = [name for found in passes.values() for name, _ in found]
    assert names.count("short_attention") == names.count("short_attention_backward") == 1
    assert names.count("_scaled_mm") == (4 if fp8 else 0)
    assert sum(name in ("mm", "addmm", "_scaled_mm") for name in names) == 3 * 4
