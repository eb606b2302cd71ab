#!/usr/bin/env bash
# Fine-tune checkpoints on VoxCeleb1 by EVAR. Run it from inside evar/.
# usage: bash …/util/ft-vc1.sh FOLDER N_ITER SEED EPOCH...
# FOLDER/checkpoint-EPOCH.pth of each EPOCH is fine-tuned N_ITER times, with the seeds SEED+1, SEED+2, ...
set -euo pipefail
# shellcheck source=util/evar-common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/evar-common.sh"

finetune_all vc1 ",dur_frames=821" "$@" -- \
    --optim adamw --lr=0.0005 --freq_mask 30 --time_mask 48 --training_mask 0.0 --mixup 0.0 --rrc False \
    --epochs 50 --batch_size 64
