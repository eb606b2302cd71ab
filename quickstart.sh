#!/usr/bin/env bash
# From audio to a pre-trained encoder in one command: sets up, converts, pre-trains a small M2D for a few minutes, and
# shows what it learned.
#
#   bash quickstart.sh              on 600 sounds of ten classes, synthesised here
#   bash quickstart.sh AUDIO_DIR    on your recordings of any format (data/README.md), in folders or not
#
# Everything goes below quickstart/ (QUICKSTART_DIR names another folder). What is there already is used again: a run that
# was stopped goes on, a finished one is shown. QUICKSTART_EPOCHS and QUICKSTART_CLIPS (sounds of a class) make it shorter
# or longer.
set -euo pipefail
unset CDPATH
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=util/setup_venv.sh
source "$ROOT/util/setup_venv.sh"

# Chosen by measuring, for minutes on two cores: with the target's first block the probe came to 78 % of the samples, with
# its last one to 74.5 % and later.
RECIPE=(--model m2d_vit_tiny --input_size 80x208 --patch_size 80x16 --decoder_depth 1 --mask_ratio 0.7 --target_layers '[0]'
  --batch_size 32 --lr 1e-3 --ema_decay_init 0.999 --ema_decay 0.9999)
CLIPS_SEEN=64000 # over the whole run
LEAST_CLIPS=200  # of an epoch: the clips of a smaller folder are repeated
MOST_CLIPS=12000 # of a larger folder, so many evenly spread ones are trained on

step() { printf '\n== %s\n' "$*"; }

# as in m2d/audio/listing.py, which can be asked only once Python's packages are there
SUFFIXES="wav wave bwf rf64 w64 flac mp3 mp2 ogg oga opus aiff aif aifc au snd caf sph nist voc
  m4a m4b mp4 mov 3gp aac ac3 wma webm mka mkv wv tta ape amr"

is_audio() {
  local names=() suffix
  for suffix in $SUFFIXES; do names+=(-o -iname "*.$suffix"); done
  find -L "$1" -type f \( "${names[@]:1}" \) -print -quit | grep -q .
}

# make_samples FOLDER: whole or not at all
make_samples() {
  [ -d "$1" ] && return
  rm -rf "$1.part"
  "$PYTHON" -m util.make_sample_audio "$1.part" --clips "${QUICKSTART_CLIPS:-60}"
  mv "$1.part" "$1"
}

# convert FROM WORK: spectrograms in WORK/lms, their list in WORK/all.csv, what is trained on in WORK/clips.csv
convert() {
  local status=0
  "$PYTHON" wav_to_lms.py "$1" "$2/lms" --suffix all --min_length None --csv "$2/all.csv" --overwrite || status=$?
  if [ "$status" -gt 1 ] || [ ! -s "$2/all.csv" ]; then
    fail "the conversion of $1 failed: see above"
  fi
  awk -v most="$MOST_CLIPS" 'NR == FNR { n++; next } FNR == 1 || int(FNR * most / n) != int((FNR - 1) * most / n) || n <= most' \
    "$2/all.csv" "$2/all.csv" >"$2/clips.csv"
}

main() {
  local audio=${1:-} base work run clips epochs began=$SECONDS
  [ $# -le 1 ] || fail "one folder at most: bash quickstart.sh [AUDIO_DIR]"
  if [ -n "$audio" ]; then
    [ -d "$audio" ] || fail "$audio is not a folder"
    audio=$(cd "$audio" && pwd)
    is_audio "$audio" || fail "$audio holds no audio file, nor do the folders below it"
  fi
  setup_venv ""
  began=$SECONDS

  base=${QUICKSTART_DIR:-$ROOT/quickstart}
  mkdir -p "$base"
  base=$(cd "$base" && pwd)
  cd "$ROOT"
  if [ -n "$audio" ]; then
    work=$base/$(basename "$audio")-$(printf %s "$audio" | cksum | cut -d' ' -f1)
  else
    work=$base/samples-${QUICKSTART_CLIPS:-60}
    audio=$work/audio
    step "Making sounds"
    mkdir -p "$work"
    make_samples "$audio"
    LEAST_CLIPS=0
  fi
  step "Log-mel spectrograms of $audio"
  mkdir -p "$work"
  convert "$audio" "$work"

  clips=$(($(wc -l <"$work/clips.csv") - 1))
  epochs=${QUICKSTART_EPOCHS:-$((CLIPS_SEEN / (clips > LEAST_CLIPS ? clips : LEAST_CLIPS)))}
  RECIPE+=(--epochs "$epochs" --warmup_epochs $((epochs / 10)) --min_ds_size "$LEAST_CLIPS" --seed 0)
  # Other clips or another recipe make another run; the same ones go on with it.
  run=$work/run-$({ printf '%s\n' "${RECIPE[@]}" && cat "$work/clips.csv"; } | cksum | cut -d' ' -f1)
  step "Pre-training on $clips clips, $epochs epochs"
  "$PYTHON" train_audio.py "${RECIPE[@]}" --data_path "$work" --csv_main "$work/clips.csv" --output_dir "$run" --auto_resume \
    --save_freq "$epochs" --eval_after "$epochs" --save_minutes 1 --feature_eval_freq 0 --num_workers 1

  step "What was learned"
  "$PYTHON" -m util.show_run "$run" --data_path "$work" --csv "$work/all.csv" --out "$work/learned.png" --overwrite
  step "Done in $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s. Your encoder: $run/checkpoint-$epochs.pth"
  echo "README.md goes on from here: embed audio with it, or train a larger model on more data with train_audio.py."
}

case ${1:-} in
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" ;;
  *) main "$@" ;;
esac
