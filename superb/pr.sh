#!/usr/bin/env bash
# SUPERB phoneme recognition (PR), LibriSpeech.
# Run it from inside s3prl/s3prl: bash …/superb/pr.sh CHECKPOINT [S3PRL_OVERRIDE]
set -euo pipefail
# shellcheck source=superb/superb-common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/superb-common.sh"
start pr "$@"

train "$name" ctc -10.43253231048584 4.241369724273682 config.optimizer.lr=1.0e-3 -c downstream/ctc/libriphone.yaml
evaluate "$name"
