#!/usr/bin/env bash
# Fine-tune checkpoints on AudioSet-2M by EVAR. Run it from inside evar/.
# usage: bash …/util/ft-as2m.sh FOLDER N_ITER SEED EPOCH...
# FOLDER/checkpoint-EPOCH.pth of each EPOCH is fine-tuned N_ITER times, with the seeds SEED+1, SEED+2, ...
set -euo pipefail

# Set this to the folder of your log-mel spectrograms (.npy) of AudioSet, or set it in the environment.
LMS_AUDIOSET=${LMS_AUDIOSET:-/path/to/your/audioset_lms}

# shellcheck source=util/evar-common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/evar-common.sh"

help_if_asked "$@"
[[ -d $LMS_AUDIOSET ]] || fail "$LMS_AUDIOSET: no such folder. Set LMS_AUDIOSET at the top of $0 to your log-mel AudioSet"

finetune_all as ",dur_frames=1001" "$@" -- \
    --lr=2.0 --freq_mask 30 --time_mask 192 --training_mask 0.5 --mixup 0.5 --rrc False \
    --epochs 70 --warmup_epochs 15 --optim lars --batch_size 64 --data_path "$LMS_AUDIOSET"
