# Sourced by quickstart.sh and test.sh: `setup_venv [extras]` installs this project into .venv and sets PYTHON.
#
# A stamp in .venv remembers what was installed, so that a second run installs nothing and needs no network.
# M2D_PYTHON names an interpreter that has everything already: it is used as it is, and no .venv is made.
# shellcheck shell=bash

unset CDPATH
PROJECT_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$PROJECT_ROOT/.venv

fail() {
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

# Python is called isolated (-I): a venv.py or pip.py of the working folder is not imported.
new_enough() { "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

# The first Python 3.10 or later on the path.
find_python() {
  local candidate found=
  for candidate in python3 python python3.13 python3.12 python3.11 python3.10; do
    if new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
    found=${found:-$("$candidate" -I -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true)}
  done
  fail "Python 3.10 or later is needed; ${found:-none} was found here"
}

pip_install() { "$PYTHON" -I -m pip install --quiet --disable-pip-version-check "$@"; }

# install EXTRAS
install() {
  cd "$PROJECT_ROOT" || return
  pip_install -e ".[$1]" -c constraints.txt || return
  # hearvalidator asks for TensorFlow, which checking a PyTorch model does not need.
  [ "$1" != test ] || pip_install --no-deps hearvalidator -c constraints.txt
}

# setup_venv [EXTRAS]: EXTRAS is one of pyproject.toml's optional dependencies that include train (the default)
setup_venv() {
  local extras=${1:-} wanted base
  if [ -n "${M2D_PYTHON:-}" ]; then
    PYTHON=$M2D_PYTHON
    return
  fi
  PYTHON=$VENV/bin/python
  wanted="$PROJECT_ROOT $(cd "$PROJECT_ROOT" && cat constraints.txt pyproject.toml | cksum)"
  # An installation with other extras serves those who need train alone.
  if new_enough "$PYTHON" && grep -qsxF "$wanted" "$VENV/installed-$extras"*; then
    return
  fi
  if ! new_enough "$PYTHON" || ! "$PYTHON" -I -m pip --version >/dev/null 2>&1; then
    base=$(find_python) || exit
    "$base" -I -m venv --clear "$VENV" || fail "$base could not make $VENV (Debian, Ubuntu: apt-get install python3-venv)"
  fi
  echo "Installing into $VENV: a few minutes the first time, nothing after that"
  (install "${extras:-train}") || fail "the installation failed: see above; the same command tries again"
  printf '%s\n' "$wanted" >"$VENV/installed-$extras"
}
