// `mm01 bench gpu`: every op and a block of layers at Text-01's shapes, each as a share of what the
// same run measured as possible.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "eval/bench_gpu/harness.h"

namespace mm01::gpu {

struct Options {
  std::vector<std::string> parts;  // of kParts; empty: all
  std::string model;               // a small model whose tokens a second are measured; may be empty
};

inline constexpr const char* kParts[] = {
    "lightning", "lightning_backward", "attention", "moe", "dense",
    "block",     "train_layers",       "train"};

struct Report {
  std::string device;
  std::vector<Row> rows;
};

// `say` gets each line for people as it comes. Errors: no GPU, a part that does not exist, a model
// that does not load.
Result<Report> Bench(const Options& options, const std::function<void(const std::string&)>& say);

}  // namespace mm01::gpu
