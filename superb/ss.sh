#!/usr/bin/env bash
# SUPERB speech separation (SS), Libri2Mix.
# Run it from inside s3prl/s3prl: bash …/superb/ss.sh CHECKPOINT [S3PRL_OVERRIDE]
set -euo pipefail
# shellcheck source=superb/superb-common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/superb-common.sh"
start ss "$@"

train "$name" separation_stft2 -9.58743667602539 4.168412208557129 config.optimizer.lr=1.0e-3 -c downstream/separation_stft2/configs/cfg.yaml
evaluate "$name" best-states-dev.ckpt
