#!/usr/bin/env bash
# A hash of everything that decides what the GPU computes: docs/measured/gpu.json holds the one that
# it was measured with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
find src \( -name '*.cu' -o -name '*.cuh' -o -name '*_cuda.cc' -o -path '*/kernels/cuda/*' \
  -o -path '*/bench_gpu/*' \) -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -d' ' -f1
