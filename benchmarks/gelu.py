"""Instructions a value of GELU on a GPU, without one: torch's formula by erf, and ours.

    python -m benchmarks.gelu

Triton compiles both formulas for an H100 (sm_90), each thread with eight values; what is counted is all of a kernel's code. The
forward pass reads and writes a value; the backward pass reads the input and the gradient, and writes the output and the gradient.
"""

import re
import subprocess
import tempfile

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.language.extra import libdevice

from benchmarks.attention import TOOLS

VALUES, WARPS = 1024, 4  # of a program


@triton.jit
def _by_erf(x):
    """Φ(x), and exp(-x²/2)."""
    return 0.5 * (1 + libdevice.erf(x * 0.7071067811865476)), libdevice.exp(x * x * -0.5)


@triton.jit
def _by_normal_cdf(x):
    """As `m2d.models.transformer.feed_forward.normal_cdf`."""
    bell = tl.exp2(x * x * -0.7213475204444817)
    t = 1.0 / (1.0 + 0.23164188826636045 * tl.abs(x))
    polynomial = (((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592
    tail = 0.5 * bell * t * polynomial
    return tl.where(x < 0, tail, 1 - tail), bell


@triton.jit
def _forward(given, out, FORMULA: tl.constexpr, VALUES: tl.constexpr):
    at = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    x = tl.load(given + at).to(tl.float32)
    cdf, _ = FORMULA(x)
    tl.store(out + at, (x * cdf).to(tl.bfloat16))


@triton.jit
def _backward(given, gradient, out, by_given, FORMULA: tl.constexpr, VALUES: tl.constexpr):
    at = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    x = tl.load(given + at).to(tl.float32)
    cdf, bell = FORMULA(x)
    tl.store(out + at, (x * cdf).to(tl.bfloat16))
    slope = cdf + x * bell * 0.3989422804014327
    tl.store(by_given + at, (tl.load(gradient + at).to(tl.float32) * slope).to(tl.bfloat16))


def instructions(kernel: triton.JITFunction, formula: triton.JITFunction) -> float:
    """A value's, in the code for sm_90."""
    constants = {"FORMULA": formula, "VALUES": VALUES}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else "*bf16" for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants}
    source = ASTSource(kernel, signature, constexprs={(names.index(k),): v for k, v in constants.items()}, attrs=aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=WARPS))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        code = subprocess.run([TOOLS / "nvdisasm", file.name], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s+/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\d+ )?([A-Z0-9]+)", code, re.MULTILINE)
    return sum(name != "NOP" for name in found) / (VALUES / (WARPS * 32))


def main() -> None:
    """Print a table."""
    for kernel, name in ((_forward, "forward"), (_backward, "backward")):
        by_erf, ours = (instructions(kernel, formula) for formula in (_by_erf, _by_normal_cdf))
        print(f"| {name} | by erf {by_erf:.1f} | ours {ours:.1f} |")


if __name__ == "__main__":
    main()
