#!/usr/bin/env bash
# Fine-tune checkpoints on ESC-50 by EVAR. Run it from inside evar/.
# usage: bash …/util/ft-esc50.sh FOLDER N_ITER SEED EPOCH...
# FOLDER/checkpoint-EPOCH.pth of each EPOCH is fine-tuned N_ITER times, with the seeds SEED+1, SEED+2, ...
set -euo pipefail
# shellcheck source=util/evar-common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/evar-common.sh"

finetune_all esc50 ",dur_frames=501,freeze_embed=True" "$@" -- \
    --lr=0.5 --freq_mask 15 --time_mask 48 --training_mask 0.5 --mixup 0.0 --rrc True
