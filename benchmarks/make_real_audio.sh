#!/usr/bin/env bash
# Audio that other programs make: speech (espeak-ng), instruments (fluidsynth), synthesisers and effects (sox).
#
#   bash benchmarks/make_real_audio.sh OUT [N]
#
# writes N clips (default 320) of 2 to 7 s as OUT/<source>/<source>_NNNN.{wav,flac,ogg}, at 16, 22.05 and 44.1 kHz, mono
# and stereo. Clip n depends on n alone; clips that exist are kept. SOUNDFONT names the General MIDI sound font to use.
set -euo pipefail
unset CDPATH

OUT=${1:-}
N=${2:-320}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() {
  printf 'make_real_audio.sh: %s\n' "$*" >&2
  exit 2
}

SOURCES=(
  speech_en-us speech_en-gb speech_de speech_fr-fr speech_es speech_it speech_pt-br speech_sv
  piano:0 marimba:12 organ:19 guitar:24 violin:40 trumpet:56 flute:73 drums:drums
  sox_pluck sox_sweep sox_siren sox_storm sox_robot sox_echo
)

declare -A SENTENCES=(
  [en]='The train to the coast leaves in ten minutes.|Please close the window before it rains.|We heard a strange noise behind the old barn.|How many apples did she buy at the market?|Nothing in the letter explained why he had left.|Turn left at the bridge and follow the river.'
  [de]='Der Zug ans Meer fährt in zehn Minuten.|Bitte schließ das Fenster, bevor es regnet.|Hinter der alten Scheune war ein seltsames Geräusch.|Wie viele Äpfel hat sie auf dem Markt gekauft?|An der Brücke links und dann am Fluss entlang.'
  [fr]='Le train pour la côte part dans dix minutes.|Ferme la fenêtre avant la pluie, je te prie.|Un bruit étrange venait de la vieille grange.|Combien de pommes a-t-elle achetées au marché ?|Tournez à gauche au pont et suivez la rivière.'
  [es]='El tren a la costa sale en diez minutos.|Cierra la ventana antes de que llueva.|Se oyó un ruido extraño detrás del granero.|¿Cuántas manzanas compró en el mercado?|Gire a la izquierda en el puente y siga el río.'
  [it]='Il treno per la costa parte fra dieci minuti.|Chiudi la finestra prima che piova.|Uno strano rumore veniva dal vecchio fienile.|Quante mele ha comprato al mercato?|Al ponte gira a sinistra e segui il fiume.'
  [pt]='O trem para a costa sai em dez minutos.|Feche a janela antes que comece a chover.|Ouvimos um barulho estranho atrás do celeiro.|Quantas maçãs ela comprou no mercado?|Vire à esquerda na ponte e siga o rio.'
  [sv]='Tåget till kusten går om tio minuter.|Stäng fönstret innan det börjar regna.|Vi hörde ett konstigt ljud bakom ladan.|Hur många äpplen köpte hon på torget?|Sväng vänster vid bron och följ ån.'
)

# speech VOICE NUMBER OUT.wav: a sentence and a number, in a voice of varied pitch and speed
speech() {
  local texts
  IFS='|' read -ra texts <<<"${SENTENCES[${1%%-*}]}"
  espeak-ng -v "$1" -p $((20 + $2 * 7 % 60)) -s $((130 + $2 * 11 % 70)) -w "$3" \
    "${texts[$(($2 % ${#texts[@]}))]} $(($2 * 7919 % 10000))."
}

# instrument PROGRAM NUMBER OUT.wav
instrument() {
  local midi=${3%.wav}.mid
  python3 "$HERE/write_midi.py" "$midi" "$1" "$2"
  fluidsynth -q -n -i -g 0.8 -r 44100 -F "$3" "$SOUNDFONT" "$midi" >/dev/null
  rm "$midi"
}

# synthesiser KIND NUMBER OUT.wav
synthesiser() {
  local n=$2 length=$((2 + $2 % 4)) low=$((110 + $2 * 37 % 400)) slow=$((1 + $2 % 7))
  local high=$((low * (2 + n % 4)))
  case $1 in
    pluck) sox -n -r 44100 -c 2 "$3" synth "$length" pluck "$low" pluck "$high" delay 0 "0.$((n % 9 + 1))" reverb $((20 + n * 13 % 70)) trim 0 "$length" ;;
    sweep) sox -n -r 44100 "$3" synth "$length" square "$low-$((high * 3))" flanger lowpass $((2000 + n * 97 % 5000)) ;;
    siren) sox -n -r 44100 "$3" synth 0.$((3 + n % 6)) sawtooth "$low:$high" repeat 15 trim 0 "$length" tremolo "$slow" 60 ;;
    storm) sox -n -r 44100 -c 2 "$3" synth 60 brownnoise synth pinknoise mix trim $((n % 50)) "$length" tremolo "0.$slow" 90 phaser 0.8 0.7 3 0.4 0.5 -t ;;
    robot)
      speech en-us "$n" "$3.speech.wav"
      sox "$3.speech.wav" -r 44100 "$3" pitch $((n * 83 % 900 - 450)) overdrive 15 tremolo $((20 + n % 40)) 80
      rm "$3.speech.wav"
      ;;
    echo)
      speech de "$n" "$3.speech.wav"
      sox "$3.speech.wav" -r 44100 "$3" gain -3 echos 0.8 0.7 $((100 + n * 29 % 300)) 0.4 $((200 + n * 41 % 300)) 0.3 bass +6
      rm "$3.speech.wav"
      ;;
  esac
}

# clip NUMBER: one file, in a form that goes round with the number
clip() {
  local source=${SOURCES[$(($1 % ${#SOURCES[@]}))]} round=$(($1 / ${#SOURCES[@]})) forms form
  local name=${source%%:*}
  forms=("wav -r 16000 -c 1" "flac -r 44100" "wav -r 22050 -c 1" "ogg -r 44100 -c 2" "wav -r 44100" "ogg -r 16000 -c 1")
  read -ra form <<<"${forms[$((round % ${#forms[@]}))]}"
  local path
  path=$OUT/$name/${name}_$(printf %04d "$round")
  [ -e "$path.${form[0]}" ] && return
  mkdir -p "$OUT/$name"
  case $source in
    speech_*) speech "${name#speech_}" "$round" "$path.part.wav" ;;
    sox_*) synthesiser "${name#sox_}" "$round" "$path.part.wav" ;;
    *) instrument "${source#*:}" "$1" "$path.part.wav" ;;
  esac
  # -R: the same dither and the same stream numbers every time
  sox -V1 -R "$path.part.wav" "${form[@]:1}" -t "${form[0]}" "$path.part" trim 0 7 norm -3
  mv "$path.part" "$path.${form[0]}"
  rm "$path.part.wav"
}

# worker FIRST: every WORKERS-th clip
worker() {
  local n
  for ((n = $1; n < N; n += WORKERS)); do
    clip "$n"
  done
}

[ -n "$OUT" ] || die "usage: bash benchmarks/make_real_audio.sh OUT [N]"
[[ $N =~ ^[1-9][0-9]*$ ]] || die "N is the number of clips, not '$N'"
for program in espeak-ng fluidsynth sox python3; do
  command -v "$program" >/dev/null || die "$program is missing (Debian, Ubuntu: apt-get install espeak-ng fluidsynth fluid-soundfont-gm sox libsox-fmt-all)"
done
for font in "${SOUNDFONT:-}" /usr/share/sounds/sf2/{FluidR3_GM,TimGM6mb,default-GM}.sf2 /usr/share/soundfonts/{FluidR3_GM,default}.sf2; do
  [ -f "$font" ] && SOUNDFONT=$font && break
done
[ -f "${SOUNDFONT:-}" ] || die "no General MIDI sound font (Debian, Ubuntu: apt-get install fluid-soundfont-gm); SOUNDFONT=FILE names one"

WORKERS=$(getconf _NPROCESSORS_ONLN)
pids=()
for ((w = 0; w < WORKERS; w++)); do
  worker "$w" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || die "a clip could not be made: see above; the same command continues from there"; done
echo "$(find "$OUT" -type f ! -name '*.part*' | wc -l) clips of ${#SOURCES[@]} sources in $OUT"
