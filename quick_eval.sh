#!/usr/bin/env bash
# Linear evaluation of a checkpoint on four tasks, one pass each, by EVAR. Training calls it for the checkpoints it saves.
# usage: bash quick_eval.sh CHECKPOINT
set -euo pipefail
unset CDPATH
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=util/evar-common.sh
source "$root/util/evar-common.sh"
enter_evar "$root" "$@"

evaluate lineareval.py cremad 16
evaluate lineareval.py gtzan 16
evaluate lineareval.py spcv2 64
evaluate lineareval.py esc50 64
summarize
