# shellcheck shell=bash
# What the scripts that call EVAR (https://github.com/nttcslab/eval-audio-repr) share; sourced, never run.

# The environment in use: the one that PYTHON names, an activated one, the one that quickstart.sh made, any.
m2d_root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$m2d_root/.venv/bin/python
    if [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} || ! -x $PYTHON ]]; then
        PYTHON=python
    fi
fi

fail() {
    echo "${0##*/}: $1" >&2
    exit "${2:-1}"
}

# help_if_asked ARGUMENTS: with -h or --help, show what is at the script's top and end it.
help_if_asked() {
    case ${1:-} in
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && exit ;;
    esac
}

# EVAR's configuration for a checkpoint: its folder's name, or its own, holds the sampling rate.
config_of() {
    local rate
    rate=$(PYTHONPATH=$m2d_root${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" -c '
import sys
from m2d.checkpoint.spec import spec_of_path
try:
    spec = spec_of_path(sys.argv[1])
except ValueError as error:
    sys.exit(str(error))
print(spec.sr if spec else "16k")' "$1") || fail "$1: its sampling rate could not be read from its name"
    case $rate in
        32k) echo config/m2d_32k.yaml ;;
        *) echo config/m2d.yaml ;;
    esac
}

# EVAR splits its options at commas, and evaluates as Python what holds brackets or quotes.
refuse_odd_path() {
    case $1 in
        *,*) fail "$1: EVAR cannot take a path with a comma in it. Rename it, or link to it" ;;
        *[][\(\)\{\}\'\"\`\#\;\\]* | *[[:cntrl:]]*)
            fail "$(printf %q "$1"): EVAR would evaluate the brackets, quotes or signs in this path. Rename it, or link to it"
            ;;
    esac
}

# quoted TEXT: so that it can be pasted into a shell.
quoted() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

# absolute PATH: so that nothing takes it for an option or an expression.
absolute() {
    case $1 in
        /*) printf '%s\n' "$1" ;;
        *) printf '%s\n' "$PWD/$1" ;;
    esac
}

# enter_evar ROOT CKPT: change into ROOT/evar and set ckpt (absolute) and config.
# Without EVAR it says how to get it and ends the script with status 1; training does not call it then.
enter_evar() {
    local root=$1
    help_if_asked "${@:2}"
    [[ $# -eq 2 ]] || fail "usage: ${0##*/} CHECKPOINT" 2
    case $2 in
        *://*) ckpt=$2 ;;
        *) ckpt=$(absolute "$2") ;;
    esac
    if [[ ! -f $root/evar/lineareval.py ]]; then
        echo "${0##*/}: not evaluated, since EVAR is not in $root/evar."
        echo "Set it up by: cd $(quoted "$root") && bash util/setup_evar.sh"
        exit 1
    fi
    case $ckpt in
        *random | *://*) ;;
        *) [[ -e $ckpt ]] || fail "$ckpt: there is no such checkpoint" ;;
    esac
    refuse_odd_path "$ckpt"
    config=$(config_of "$ckpt")
    cd -- "$root/evar" || exit
    export CUDA_VISIBLE_DEVICES=0
}

# evaluate PROGRAM TASK BATCH_SIZE: one linear evaluation of ckpt.
evaluate() {
    "$PYTHON" "$1" "$config" "$2" "batch_size=$3,weight_file=$ckpt"
}

summarize() {
    "$PYTHON" summarize.py "$ckpt"
}

# finetune_all TASK OPTIONS FOLDER N_ITER SEED EPOCH... -- FLAGS...
# Fine-tunes FOLDER/checkpoint-EPOCH.pth of each EPOCH on TASK N_ITER times, with the seeds SEED+1, SEED+2, ...
# OPTIONS (such as ,dur_frames=1001) follow the weight file, FLAGS go to EVAR's finetune.py.
finetune_all() {
    local task=$1 options=$2 given=() folder n_iter first epoch weight seed
    shift 2
    help_if_asked "$@"
    while [[ $1 != -- ]]; do
        given+=("$1")
        shift
    done
    shift
    [[ ${#given[@]} -ge 4 && ${given[1]} =~ ^[0-9]+$ && ${given[2]} =~ ^[0-9]+$ ]] ||
        fail "usage: ${0##*/} FOLDER N_ITER SEED EPOCH... (N_ITER and SEED are whole numbers)" 2
    [[ -f finetune.py && -f config/m2d.yaml ]] ||
        fail "run this from inside the evar folder (cd evar). Where there is none: bash util/setup_evar.sh"
    folder=$(absolute "${given[0]}") n_iter=$((10#${given[1]})) first=$((10#${given[2]} + 1))
    for epoch in "${given[@]:3}"; do
        refuse_odd_path "$folder/checkpoint-$epoch.pth"
        weight=$folder/checkpoint-$epoch.pth
        [[ -f $weight ]] || fail "$weight: there is no such checkpoint"
    done
    for epoch in "${given[@]:3}"; do
        weight=$folder/checkpoint-$epoch.pth
        for ((seed = first; seed < first + n_iter; seed++)); do
            "$PYTHON" finetune.py "$(config_of "$weight")" "$task" "weight_file=$weight,encoder_only=True$options" \
                "$@" --seed "$seed"
        done
    done
}
