#!/usr/bin/env bash
# Measures what this project does on a GPU, in at most eight minutes, the most important first; a table comes last.
# usage: bash benchmarks/gpu.sh [--device cuda|cpu] [--quick] [--out FOLDER] [--published FOLDER] [PART...]
#   --device     cuda (the default), or cpu, to see that the parts work
#   --quick      very small sizes, with wide time limits: the figures mean nothing
#   --out        where the parts' output goes (default: $OUT, else gpu-TIME)
#   --published  a clone of the published system, to measure beside ours
#   PART         only these parts: step, embedding, tests, published, embed_files, run_from_pack, attention, add_norm; without --quick
#                also restart, fp8, no-recompute_gelu, half_target, no-short_attention, tiny, tiny_graphs, small, small_graphs,
#                m2d_as, m2d_x, m2d_s, msm_mae, whole
# It needs no data and no network. Each part is a process of its own with a time limit; one that fails costs the others nothing.
# The exit status is 1 where a part failed.
set -euo pipefail
unset CDPATH
PYTHON=${PYTHON:-$(command -v python || command -v python3)}
device=cuda quick='' out=${OUT:-} published='' wanted=() failed=0 found=''

while [ $# -gt 0 ]; do
  case $1 in
    --device | --out | --published) [ $# -gt 1 ] || { echo "gpu.sh: error: $1 needs a value" >&2 && exit 2; } ;;&
    --device) device=$2 && shift ;;
    --quick) quick=yes ;;
    --out) out=$2 && shift ;;
    --published) published=$(realpath "$2") && shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && exit ;;
    -*) echo "gpu.sh: error: there is no flag $1 (--help lists the flags)" >&2 && exit 2 ;;
    *) wanted+=("$1") ;;
  esac
  shift
done
"$PYTHON" - "$device" <<'CHECK' || exit 2
import sys
try:
    import torch
except ModuleNotFoundError:
    sys.exit(f"gpu.sh: error: {sys.executable} has no torch: source .venv/bin/activate, or set PYTHON")
if sys.argv[1] not in ("cuda", "cpu"):
    sys.exit(f"gpu.sh: error: --device {sys.argv[1]}: cuda or cpu")
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("gpu.sh: error: this machine has no CUDA device: --device cpu --quick sees that the parts work")
CHECK
out=${out:-gpu-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out"
out=$(realpath "$out")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TORCHINDUCTOR_CACHE_DIR=$(mktemp -d)
export TORCHINDUCTOR_CACHE_DIR
trap 'rm -rf "$TORCHINDUCTOR_CACHE_DIR"' EXIT
table=$out/table.txt
: >"$table"
spare=0
[ -z "$quick" ] || spare=3000
end=$((SECONDS + 470 + spare))

# part NAME SECONDS COMMAND...: run a command with a time limit; its output goes to NAME.txt, its rows to the table.
part() {
  local name=$1 limit=$(($2 + spare)) left=$((end - SECONDS)) status=0
  shift 2
  if [ ${#wanted[@]} -gt 0 ] && [[ " ${wanted[*]} " != *" $name "* ]]; then
    return
  fi
  found=yes
  if [ "$left" -lt 10 ]; then
    echo "| $name | no time was left |" >>"$table"
    failed=1
    return
  fi
  echo "$(date +%T) $name" >&2
  timeout --kill-after=10 $((limit < left ? limit : left)) "$@" >"$out/$name.txt" 2>&1 || status=$?
  grep '^|' "$out/$name.txt" >>"$table" || true
  if [ $status -ne 0 ]; then
    local why="failed with status $status"
    [ $status -ne 124 ] || why="did not end within $limit s"
    echo "| $name | $why: $out/$name.txt |" >>"$table"
    failed=1
  fi
}

step=("$PYTHON" -m benchmarks.train_step --device "$device")
embedding=("$PYTHON" -m benchmarks.embedding --device "$device" --bf16)
files=("$PYTHON" -m benchmarks.embed_files --device "$device")
run=("$PYTHON" -m benchmarks.run_from_pack --device "$device")
theirs=("$PYTHON" benchmarks/published_step.py "$published" --device "$device")
if [ "$device" = cpu ]; then
  theirs+=(--precision fp32)
else
  step+=(--precision bf16)
  embedding+=(--compile)
  files+=(--bf16)
  run+=(--bf16)
fi
base=m2d_vit_base batch=(--batch_size 512)
fast=(--compile_blocks --short_attention --recompute_gelu)
if [ -n "$quick" ]; then
  base=m2d_vit_tiny batch=()
  step+=(--short_attention --recompute_gelu --half_target --fp8)
  tiny=(--batch_size 1 --input_size 80x16 --steps 1)
  step+=("${tiny[@]}" --warmup 0 --rounds 1)
  theirs+=("${tiny[@]}" --warmup 0)
  run+=(--model m2d_vit_tiny --decoder_depth 1 "${tiny[@]}" --clips 2 --num_workers 1)
  embedding+=(--weights m2d_vit_tiny-80x16p16x16-random --batch_size 1 --seconds 0.5 --steps 1 --warmup 0 --rounds 1)
  files+=(--weights m2d_vit_tiny-80x16p16x16-random --seconds 0.5 --files 4 --distinct 2 --batch_size 2 --workers 2)
else
  step+=(--steps 5 --warmup 3 --rounds 3)
  embedding+=(--steps 20 --warmup 5 --rounds 3)
  files+=(--files 20000)
fi
[ "$device" = cpu ] || step+=("${fast[@]}")
part step 90 "${step[@]}" --model $base "${batch[@]}" --gaps
part embedding 90 "${embedding[@]}"
[ "$device" = cpu ] || part tests 150 "$PYTHON" -m pytest -m 'gpu and not slow' -p no:cacheprovider --tb=short
[ -z "$published" ] || part published 60 "${theirs[@]}" --model $base "${batch[@]}"
part embed_files 70 "${files[@]}"
if [ -z "$quick" ]; then
  part restart 40 "${step[@]}" --fast_only --model $base "${batch[@]}" --rounds 1 # compiled before: the cache is there
  for option in --fp8 --no-recompute_gelu --half_target --no-short_attention; do
    part "${option#--}" 40 "${step[@]}" --fast_only --model $base "${batch[@]}" "$option"
  done
  for size in tiny small; do
    sizes=(--model "m2d_vit_$size" --input_size 80x208 --batch_size 256)
    part "$size" 50 "${step[@]}" --fast_only "${sizes[@]}" --gaps
    part "${size}_graphs" 40 "${step[@]}" --fast_only "${sizes[@]}" --gaps --cuda_graphs
  done
  part m2d_as 40 "${step[@]}" --fast_only --model m2d_as_vit_base --batch_size 512
  part m2d_x 40 "${step[@]}" --fast_only --model m2d_x_vit_base --batch_size 512
  part m2d_s 50 "${step[@]}" --fast_only --model m2d_s_vit_base --patch_size 80x2 --batch_size 256
  part msm_mae 40 "${step[@]}" --fast_only --model msm_mae_vit_base --mask_ratio 0.75 --batch_size 512
fi
part run_from_pack 80 "${run[@]}"
if [ "$device" != cpu ]; then
  part attention 30 "$PYTHON" -m benchmarks.attention
  part add_norm 20 "$PYTHON" -m benchmarks.add_norm
fi
if [ -z "$quick" ]; then
  part whole 90 "${step[@]}" --no-compile_blocks --compile --fast_only --model $base "${batch[@]}"
fi
tests=$(tail -n 1 "$out/tests.txt" 2>/dev/null) && echo "| pytest -m gpu | $tests |" >>"$table"
[ -n "$found" ] || { echo "gpu.sh: error: there is no part ${wanted[*]} here (--help lists the parts)" >&2 && exit 2; }
cat "$table"
exit $failed
