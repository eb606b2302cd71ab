#!/usr/bin/env bash
# SUPERB emotion recognition (ER), IEMOCAP, five folds.
# Run it from inside s3prl/s3prl: bash …/superb/er.sh CHECKPOINT [S3PRL_OVERRIDE]
set -euo pipefail
# shellcheck source=superb/superb-common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/superb-common.sh"
start er "$@"

for fold in fold1 fold2 fold3 fold4 fold5; do
    train "$name-$fold" emotion -13.037399291992188 3.619741439819336 \
        "config.optimizer.lr=1.0e-5,,config.downstream_expert.datarc.test_fold='$fold'" -c downstream/emotion/config.yaml
    evaluate "$name-$fold"
done
