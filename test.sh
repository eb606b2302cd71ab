#!/usr/bin/env bash
# Sets up what the tests need, once, and runs them. Arguments go to pytest: bash test.sh -k masking
# usage: bash test.sh [PYTEST ARGUMENTS]
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=util/setup_venv.sh
source util/setup_venv.sh

setup_venv test
"$PYTHON" -m ruff check .
if command -v shellcheck >/dev/null; then
  git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck -x
else
  echo "shellcheck is not installed: the shell scripts are not checked"
fi
OMP_NUM_THREADS=1 exec "$PYTHON" -m pytest -n auto --dist worksteal "$@"
