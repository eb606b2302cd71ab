#!/usr/bin/env bash
# SUPERB keyword spotting (KS), Speech Commands v1.
# Run it from inside s3prl/s3prl: bash …/superb/ks.sh CHECKPOINT [S3PRL_OVERRIDE]
set -euo pipefail
# shellcheck source=superb/superb-common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/superb-common.sh"
start ks "$@"

train "$name" speech_commands -11.506255149841309 4.314857482910156 config.optimizer.lr=1.0e-4
evaluate "$name"
