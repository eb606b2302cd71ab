#!/usr/bin/env bash
# Prepare EVAR (https://github.com/nttcslab/eval-audio-repr), the evaluation package, in evar/ of this project, and install
# what it imports (util/evar-requirements.txt) into the environment in use.
# usage: bash util/setup_evar.sh
# What is there already is kept. Each file is checked; what failed is named at the end, and a second call tries it again.
set -euo pipefail
unset CDPATH
case ${1:-} in
    "") ;;
    -h | --help) sed -n "2,/^set /{/^set /d;s/^# \{0,1\}//;p}" "${BASH_SOURCE[0]}"; exit ;;
    *) echo "usage: bash util/setup_evar.sh" >&2; exit 2 ;;
esac
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=util/evar-common.sh
source "$root/util/evar-common.sh"
evar=$root/evar
failed=()

# fetch URL DESTINATION: download one Python file; it gets its name when it is whole and parses.
fetch() {
    local url=$1 to=$evar/$2 part=$evar/$2.part
    if [[ -s $to ]]; then
        echo "have $2"
    elif ! curl --fail --silent --show-error --location --retry 3 "$url" -o "$part"; then
        failed+=("$2: $url could not be downloaded")
    elif ! "$PYTHON" -I -c 'import ast, sys; sys.exit(not ast.parse(open(sys.argv[1]).read()).body)' "$part" 2>/dev/null; then
        failed+=("$2: what $url sent is not a Python file")
    else
        mv -- "$part" "$to"
        echo "got $2"
    fi
    rm -f -- "$part"
}

if [[ -f $evar/lineareval.py ]]; then
    echo "have EVAR"
elif [[ -e $evar ]]; then
    echo "$evar is there, but it is not EVAR (no lineareval.py). Move it away, and call this again." >&2
    exit 1
elif ! git clone https://github.com/nttcslab/eval-audio-repr.git "$evar"; then
    echo "EVAR could not be cloned from https://github.com/nttcslab/eval-audio-repr.git into $evar" >&2
    exit 1
fi

general=https://raw.githubusercontent.com/daisukelab/general-learning/master
sound=https://raw.githubusercontent.com/daisukelab/sound-clf-pytorch/master/for_evar
fetch "$general/MLP/torch_mlp_clf2.py" evar/utils/torch_mlp_clf2.py
fetch "$sound/sampler.py" evar/sampler.py
fetch "$sound/cnn14_decoupled.py" evar/cnn14_decoupled.py

environment=$("$PYTHON" -I -c 'import sys; print(sys.prefix)')
if "$PYTHON" -I -m pip install --quiet --disable-pip-version-check -r "$root/util/evar-requirements.txt"; then
    echo "EVAR's packages are installed in $environment"
else
    failed+=("packages: pip could not install util/evar-requirements.txt into $environment")
fi

if [[ ${#failed[@]} -gt 0 ]]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "EVAR is ready in $evar. Its data sets come next: see $evar/Preparing-datasets.md"
