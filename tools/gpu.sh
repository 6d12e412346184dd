#!/usr/bin/env bash
# What needs a GPU: the tests of every op, the models against their references, a book and a million
# tokens, and the benches, which write docs/measured/gpu.json. `./check gpu` builds and calls this.
#
# usage: tools/gpu.sh BUILD_FOLDER [RECEIPT.json]
#   MM01_COMMIT   names the code in the receipt instead of the commit that was built
#   MM01_MODELS   the folder that holds nano (default: models); what needs it is skipped without it
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly build=$1 receipt=${2:-docs/measured/gpu.json} nano=${MM01_MODELS:-models}/nano
readonly most_seconds=600
readonly million=EngineCudaTest.AMillionTokensGrowNothing
passed=0 failed=0 skipped=0

step() {  # step NAME COMMAND...
  local name=$1 start=$SECONDS
  shift
  if "$@"; then
    echo "$name ... passed, $((SECONDS - start)) s"
    ((++passed))
  else
    echo "$name ... failed, $((SECONDS - start)) s"
    ((++failed))
  fi
}

needs() {  # needs FILE NAME COMMAND...: a step, where the file is there
  local file=$1 name=$2
  shift
  if [[ -e $file ]]; then
    step "$@"
  else
    echo "$name ... SKIPPED: $file is not there"
    ((++skipped))
  fi
}

for program in "$build"/*_cuda_test; do
  needs "$program" "$(basename "$program")" "$program" --gtest_brief=1 "--gtest_filter=-$million"
done
compare() {  # compare FOLDER TOLERANCE: a model in float32 against its reference
  needs "$1/reference.safetensors" "compare $1" "$build/mm01" compare "$1" \
    "$1/reference.safetensors" --device cuda --weights float32 --tolerance "$2" --quiet
}
compare tests/goldens/text-tiny 1e-4
compare tests/goldens/text-128 1e-4
step "compare gradients" "$build/mm01" compare tests/goldens/text-tiny \
  tests/goldens/text-tiny/reference.safetensors --gradients --device cuda --tolerance 1e-4 --quiet
needs "$nano" "the whole book" "$build/mm01" generate "$nano" --device cuda \
  --prompt-file data/the-iron-heel.txt --max-tokens 64 --seed 1
if [[ -e $build/infer_cuda_test ]]; then
  needs models/nano "1,048,576 tokens" "$build/infer_cuda_test" --gtest_brief=1 \
    "--gtest_filter=$million"
fi
step "bench" "$build/mm01" bench gpu --model "$nano" --json "$receipt"
line="$passed passed, $failed failed"
((skipped == 0)) || line+=", $skipped skipped"
echo "$line, $SECONDS s of at most $most_seconds"
((failed == 0 && SECONDS <= most_seconds))
