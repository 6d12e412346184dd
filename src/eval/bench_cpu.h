// The CPU back end against what the machine can do, in one run.
//
//   prefill   2,048 tokens of a random model in float32, as a share of the fastest library's GEMM
//   decode    one token of the same model in bf16 and int8, as a share of the read bandwidth for
//             the bytes that a token touches
//   context   one token of a small model at 1,000 and at 100,000 tokens of context
//
// Each part checks its answer before it is timed: prefill against decode, bit for bit. A value and
// its ceiling are measured side by side in rounds, and the median round is what counts.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/text01/config.h"

namespace mm01::eval {

struct BenchOptions {
  int num_threads = 0;        // 0: all cores
  std::string context_model;  // a model folder for the part on context; empty: left out
  bool brief = false;         // a model of a few million parameters: does everything run?
};

struct BenchLine {
  std::string name;      // what was measured
  double value = 0.0;    // in `unit`
  std::string unit;      // "GFLOP/s", "GB/s", "tokens/s", "ms", "x"
  double ceiling = 0.0;  // of the same unit; 0 where there is none
  std::string of;        // what the ceiling is

  double share() const { return ceiling > 0.0 ? value / ceiling : 0.0; }
};

struct BenchReport {
  std::string cpu;
  int num_threads = 0;
  int64_t parameters = 0;
  std::vector<BenchLine> lines;
};

// `on_line` gets each line as it is measured. Errors: no memory for the model; Bug if an answer is
// wrong.
Result<BenchReport> BenchCpu(const BenchOptions& options,
                             const std::function<void(const BenchLine&)>& on_line = {});

// The random model: 8 layers of which one is softmax, 8 experts, top-2, 1.7 billion parameters.
TextConfig BenchConfig(bool brief);

}  // namespace mm01::eval
