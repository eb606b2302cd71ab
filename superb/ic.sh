#!/usr/bin/env bash
# SUPERB intent classification (IC), Fluent Speech Commands.
# Run it from inside s3prl/s3prl: bash …/superb/ic.sh CHECKPOINT [S3PRL_OVERRIDE]
set -euo pipefail
# shellcheck source=superb/superb-common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/superb-common.sh"
start ic "$@"

train "$name" fluent_commands -13.017439842224121 4.417759895324707 config.optimizer.lr=1.0e-3
evaluate "$name"
