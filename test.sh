#!/usr/bin/env bash
# Sets up what the tests need, once; checks style, types, shell scripts and the documentation site; runs the tests.
# usage: bash test.sh [PYTEST ARGUMENTS]
# Arguments go to pytest, and leave types and site out: bash test.sh -k masking
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=util/setup_venv.sh
source util/setup_venv.sh

case ${1:-} in
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' test.sh && exit ;;
esac

setup_venv test
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
if command -v shellcheck >/dev/null; then
  git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck -x
else
  echo "shellcheck is not installed: the shell scripts are not checked"
fi
if [ $# = 0 ]; then
  "$PYTHON" -m basedpyright --pythonpath "$PYTHON"
  NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --strict --quiet --site-dir build/site
fi
OMP_NUM_THREADS=1 exec "$PYTHON" -m pytest -n auto --dist worksteal "$@"
