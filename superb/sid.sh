#!/usr/bin/env bash
# SUPERB speaker identification (SID), VoxCeleb1.
# Run it from inside s3prl/s3prl: bash …/superb/sid.sh CHECKPOINT [S3PRL_OVERRIDE]
set -euo pipefail
# shellcheck source=superb/superb-common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/superb-common.sh"
start sid "$@"

train "$name" voxceleb1 -10.571271 4.3681135 config.optimizer.lr=1.0e-3
evaluate "$name"
