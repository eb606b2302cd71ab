#!/usr/bin/env bash
# SUPERB automatic speaker verification (ASV), VoxCeleb1.
# Run it from inside s3prl/s3prl: bash …/superb/asv.sh CHECKPOINT [S3PRL_OVERRIDE]
set -euo pipefail
# shellcheck source=superb/superb-common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/superb-common.sh"
start asv "$@"

[[ -n ${VOXCELEB1:-} ]] || fail "set VOXCELEB1 to the folder of VoxCeleb1: the test needs it"

train "$name" sv_voxceleb1 -11.070931 4.1807961 config.optimizer.lr=5.0e-5
bash downstream/sv_voxceleb1/test_expdir.sh "result/downstream/$name" "$VOXCELEB1"
