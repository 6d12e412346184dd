#!/usr/bin/env bash
# The models that ship, from the texts to their measured weights, on one GPU: data, models/nano and
# models/nano-linear trained, as int8, retrieval at every length, docs/measured/nano-training.json.
#
# usage: tools/train_nano.sh TEXTS [YARDSTICK]
#   TEXTS       folder with train.txt.xz and val.txt.xz
#   YARDSTICK   the independent trainer's train_nano.py: its evaluate() measures the weights as well
#               (needs Python with torch, numpy, tokenizers and safetensors)
#   MM01        the program (build/release/mm01)
#   MM01_DEVICE cuda where it is not set
#
# Runs in the repository's root. What is there already is not made again, and a training that was
# stopped goes on, so after an end of any kind the same command goes on. Models and what was
# measured come into build/nano; models/ is not touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly texts=$1 yardstick=${2-} mm01=${MM01:-build/release/mm01} out=build/nano
export MM01_DEVICE=${MM01_DEVICE:-cuda}
mkdir -p "$out"

step() { echo "$(date -u +%H:%M:%S) $*"; }
data() {  # data NAME FILE
  [[ -f build/data/$1/data.json ]] && return
  step "data $1"
  rm -rf "build/data/$1"
  "$mm01" data build "$2" "build/data/$1" --tokenizer models/nano --quiet
}
train() {  # train NAME: the run, and its weights as int8 once it is done
  local run=runs/$1 log=$out/$1.log resume=()
  [[ -f $out/$1/config.json ]] && return
  [[ -d $run/checkpoints ]] && resume=(--resume)
  step "train $1 ${resume[*]-}"
  "$mm01" train "recipes/$1.toml" "${resume[@]}" >>"$log" 2>&1
  "$mm01" report "$run" >/dev/null
  rm -rf "$out/$1.part"
  "$mm01" quantize "$run/model" "$out/$1.part" --weights int8 --quiet
  mv "$out/$1.part" "$out/$1"
  cp "$run/report.html" "$out/$1-report.html"
}
needles() {  # needles NAME LENGTH TRIALS QUESTIONS
  local file=$out/$1-needles-$2.json
  [[ -s $file ]] && return
  "$mm01" eval needle "$out/$1" --length "$2" --trials "$3" --questions "$4" --seed 1 --json \
    --quiet >"$file.part" || { echo "needles of $1 at $2: not measured"; return 0; }
  mv "$file.part" "$file"
  step "needles of $1 at $2 tokens: $(grep -m1 accuracy "$file")"
}
losses() {  # losses NAME
  local file=$out/$1-losses.json
  [[ -z $yardstick || -s $file ]] && return
  python3 tools/yardstick_losses.py "$yardstick" "$texts/val.txt.xz" "$out/$1" >"$file.part"
  mv "$file.part" "$file"
  step "losses of $1: $(tr -d '\n' <"$file")"
}
record() { python3 tools/nano_record.py "$out" docs/measured/nano-training.json; }

data val "$texts/val.txt.xz"
data train "$texts/train.txt.xz"
if [[ ! -f build/data/chat/data.json ]]; then
  step "chats"
  python3 tools/chat_rows.py "$texts/train.txt.xz" "$out/chat.jsonl"
  data chat "$out/chat.jsonl"
fi

train nano
for length in 2048 8192 32768; do needles nano "$length" 100 1; done
needles nano 131072 100 4
losses nano
record
train nano-linear
for length in 2048 8192 32768; do needles nano-linear "$length" 100 4; done
record
needles nano 262144 20 4
needles nano-linear 131072 20 4
needles nano 1048576 20 4
record
step "done: $out"
