#!/usr/bin/env bash
# What needs a GPU: the tests of every op, the models against their references, and the benches,
# which write docs/measured/gpu.json. `./check gpu` builds and calls this.
#
# usage: tools/gpu.sh BUILD_FOLDER [RECEIPT.json]
#   MM01_COMMIT   names the code in the receipt where there is no git
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly build=$1 receipt=${2:-docs/measured/gpu.json}
passed=0 failed=0

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

for program in "$build"/*_cuda_test; do
  step "$(basename "$program")" "$program" --gtest_brief=1
done
compare() {  # compare FOLDER TOLERANCE: a model in float32 against its reference
  step "compare $1" "$build/mm01" compare "$1" "$1/reference.safetensors" --device cuda \
    --weights float32 --tolerance "$2" --quiet
}
compare tests/goldens/text-tiny 1e-4
compare tests/goldens/text-128 1e-4
step "compare gradients" "$build/mm01" compare tests/goldens/text-tiny \
  tests/goldens/text-tiny/reference.safetensors --gradients --device cuda --tolerance 1e-4 --quiet
step "the whole book" "$build/mm01" generate models/nano --device cuda \
  --prompt-file data/the-iron-heel.txt --max-tokens 64 --seed 1
step "bench" "$build/mm01" bench gpu --model models/nano --json "$receipt" \
  --commit "${MM01_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}" \
  --sources "$(tools/cuda_sources.sh)"
echo "$passed passed, $failed failed"
((failed == 0))
