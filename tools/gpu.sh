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
for folder in tests/goldens/text-tiny tests/goldens/text-128 models/nano; do
  [[ -d $folder ]] || continue
  for reference in "$folder"/reference*.safetensors; do
    step "compare $folder" "$build/mm01" compare "$folder" "$reference" --device cuda \
      --weights float32 --tolerance 1e-4 --quiet
  done
done
step "bench" "$build/mm01" bench gpu --model models/nano --json "$receipt" \
  --commit "${MM01_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}" \
  --sources "$(tools/cuda_sources.sh)"
echo "$passed passed, $failed failed"
((failed == 0))
