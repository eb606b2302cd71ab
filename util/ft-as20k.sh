#!/usr/bin/env bash
# Fine-tune checkpoints on AudioSet-20K by EVAR. Run it from inside evar/.
# usage: bash …/util/ft-as20k.sh FOLDER N_ITER SEED EPOCH...
# FOLDER/checkpoint-EPOCH.pth of each EPOCH is fine-tuned N_ITER times, with the seeds SEED+1, SEED+2, ...
set -euo pipefail
# shellcheck source=util/evar-common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/evar-common.sh"

finetune_all as20k ",dur_frames=1001" "$@" -- \
    --lr=0.5 --freq_mask 30 --time_mask 192 --training_mask 0.5 --mixup 0.3 --rrc True --batch_size 64
