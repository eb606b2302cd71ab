#!/usr/bin/env bash
# Linear evaluation of a checkpoint on nine tasks by EVAR. Training calls it when it ends.
# usage: bash all_eval.sh CHECKPOINT
set -euo pipefail
unset CDPATH
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=util/evar-common.sh
source "$root/util/evar-common.sh"
enter_evar "$root" "$@"

evaluate 2pass_lineareval.py cremad 16
evaluate 2pass_lineareval.py gtzan 16
evaluate 2pass_lineareval.py spcv2 64
evaluate 2pass_lineareval.py esc50 64
evaluate 2pass_lineareval.py us8k 64
evaluate 2pass_lineareval.py vc1 64
evaluate 2pass_lineareval.py voxforge 64
evaluate 2pass_lineareval.py nsynth 64
evaluate 2pass_lineareval.py surge 64
summarize
