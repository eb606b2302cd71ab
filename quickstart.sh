#!/usr/bin/env bash
# From audio to a pre-trained encoder in one command: sets up, converts, pre-trains for a few minutes, and shows what was
# learned, beside the untrained encoder and the spectrogram's statistics.
#
#   bash quickstart.sh              a masked autoencoder from scratch, on 600 sounds of ten classes, synthesised here
#   bash quickstart.sh AUDIO_DIR    on your recordings of any format (data/README.md), in folders or not: M2D-X from the encoder
#                                   that comes along (weights/README.md), which is its teacher too
#
# Everything goes below quickstart/ (QUICKSTART_DIR names another folder). What is there already is used again: a run that
# was stopped continues, a finished one is shown. QUICKSTART_EPOCHS and QUICKSTART_CLIPS (sounds of a class) make it shorter
# or longer.
set -euo pipefail
unset CDPATH
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=util/setup_venv.sh
source "$ROOT/util/setup_venv.sh"

# docs/learning.md says what was tried: from scratch, in minutes, M2D's own target collapses, and reconstruction holds its ground.
# Nothing from scratch is worth its minutes on every task; M2D-X from the encoder that comes with the project is.
SCRATCH=(mae --patch_size 16x16 --decoder_depth 1 --mask_ratio 0.75 --norm_pix_loss --lr 1e-3)
SCRATCH_ON_CPU=(--model mae_vit_mini --input_size 80x96 --batch_size 64)
SCRATCH_ON_GPU=(--model mae_vit_small --input_size 80x208 --batch_size 256) # not measured
FURTHER=(m2d --model m2d_x_vit_mini --input_size 80x96 --patch_size 16x8 --decoder_depth 1 --mask_ratio 0.5 --weights tiny --teacher tiny
  --loss_m2d 0.3 --loss_off 1 --ema_decay_init 0.996 --ema_decay 0.9999 --lr 3e-4)
FURTHER_ON_CPU=(--batch_size 64)
FURTHER_ON_GPU=(--batch_size 256)                     # not measured
SCRATCH_CLIPS=128000 SCRATCH_CLIPS_ON_GPU=600000      # seen over the whole run
FURTHER_CLIPS=24000 FURTHER_CLIPS_ON_GPU=100000
LEAST_CLIPS=200  # of an epoch: the clips of a smaller folder are repeated
MOST_CLIPS=12000 # of a larger folder, train on this many, evenly spread

has_gpu() { "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }

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
  local audio=${1:-} base work run clips epochs seen recipe began=$SECONDS
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

  if [ $# -eq 0 ]; then
    recipe=("${SCRATCH[@]}" "${SCRATCH_ON_CPU[@]}") seen=$SCRATCH_CLIPS
    if has_gpu; then recipe=("${SCRATCH[@]}" "${SCRATCH_ON_GPU[@]}") seen=$SCRATCH_CLIPS_ON_GPU LEAST_CLIPS=2000; fi
  else
    recipe=("${FURTHER[@]}" "${FURTHER_ON_CPU[@]}") seen=$FURTHER_CLIPS
    if has_gpu; then recipe=("${FURTHER[@]}" "${FURTHER_ON_GPU[@]}") seen=$FURTHER_CLIPS_ON_GPU LEAST_CLIPS=2000; fi
  fi
  clips=$(($(wc -l <"$work/clips.csv") - 1))
  epochs=${QUICKSTART_EPOCHS:-$((seen / (clips > LEAST_CLIPS ? clips : LEAST_CLIPS)))}
  epochs=$((epochs > 0 ? epochs : 1))
  recipe+=(--epochs "$epochs" --warmup_epochs $((epochs / 10)) --min_ds_size "$LEAST_CLIPS" --seed 0)
  # Other clips or another recipe make another run; the same ones continue it.
  run=$work/run-$({ printf '%s\n' "${recipe[@]}" && cat "$work/clips.csv"; } | cksum | cut -d' ' -f1)
  step "Pre-training on $clips clips, $epochs epochs"
  "$PYTHON" -m m2d train "${recipe[@]}" --data_path "$work" --csv_main "$work/clips.csv" --output_dir "$run" --auto_resume \
    --save_freq "$epochs" --eval_after "$epochs" --save_minutes 1 --feature_eval_freq 0 --num_workers 1

  step "What was learned"
  "$PYTHON" -m util.show_run "$run" --data_path "$work" --csv "$work/all.csv" --out "$work/learned.png" --overwrite
  if [ $# -eq 0 ]; then
    echo "These sounds were synthesised here: they show that it works. docs/learning.md has figures for real sound."
  fi
  step "Done in $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s. Your encoder: $run/checkpoint-$epochs.pth"
  echo "README.md continues from here: embed audio with it, or pre-train on more data."
  if [ $# -eq 0 ]; then
    echo "Where folders are classes, compare it with the encoder that comes with the project (weights/README.md):"
  else
    echo "It began as the encoder tiny (weights/README.md). Where folders are classes, compare the two:"
  fi
  printf '  m2d probe %q --weights %q tiny\n' "$audio" "$run/checkpoint-$epochs.pth"
}

case ${1:-} in
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" ;;
  *) main "$@" ;;
esac
