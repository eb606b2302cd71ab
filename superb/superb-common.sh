# shellcheck shell=bash
# What the scripts of the SUPERB tasks share; sourced, never run.

PYTHON=${PYTHON:-python}

fail() {
    echo "${0##*/}: $1" >&2
    exit "${2:-1}"
}

# start TASK CKPT [OVERRIDE]: check where we are, and set ckpt (absolute), name (of the experiment) and override.
start() {
    [[ $# -eq 2 || $# -eq 3 ]] || fail "usage: ${0##*/} CHECKPOINT [S3PRL_OVERRIDE]" 2
    [[ -f run_downstream.py && -f upstream/m2d/hubconf.py ]] ||
        fail "run this from inside s3prl/s3prl, after bash superb/setup_s3prl.sh /your/s3prl"
    case $2 in
        /*) ckpt=$2 ;;
        *) ckpt=$PWD/$2 ;;
    esac
    [[ -f $ckpt ]] || fail "$ckpt: there is no such checkpoint"
    override=${3:-}
    # shellcheck disable=SC2034 # the task's script uses it
    name=$(basename -- "$(dirname -- "$ckpt")")-$(basename -- "$ckpt" .pth)-$1
}

# train NAME DOWNSTREAM MEAN STD OVERRIDE [FLAGS...]: a training run, its log-mel normalised by MEAN and STD.
train() {
    "$PYTHON" run_downstream.py -m train -n "$1" -u m2d -k "$ckpt,$3,$4" -d "$2" -o "$5${override:+,,$override}" "${@:6}"
}

# evaluate NAME [CHECKPOINT]: test what train NAME kept as the best.
evaluate() {
    "$PYTHON" run_downstream.py -m evaluate -e "result/downstream/$1/${2:-dev-best.ckpt}"
}
