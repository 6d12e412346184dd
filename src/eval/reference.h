// A file of numbers that another implementation computed, and how far ours are from them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/safetensors.h"
#include "model/text01/config.h"

namespace mm01::eval {

struct Comparison {
  std::string name;
  bool exact = false;           // ids and tokens: must be equal
  double relative_error = 0.0;  // 2-norm of the difference over 2-norm of the reference, in double
  double largest_difference = 0.0;
  int64_t num_values = 0;
  int64_t num_unequal = 0;  // of exact ones
  bool ok = false;          // equal, or within the tolerance
};

struct CompareReport {
  std::vector<Comparison> tensors;  // in the order of the forward pass
  std::vector<std::string> not_compared;
  std::string first_deviating;  // the first tensor in that order that is not ok, or empty
  double mean_nll = 0.0;        // where the reference has nll

  bool ok() const { return first_deviating.empty(); }
  // Fills first_deviating.
  void Judge();
};

struct Reference {
  SafetensorsFile file;
  std::vector<int64_t> ids;  // input_ids [N, T] or [T]
  int64_t num_sequences = 1;
  int64_t length = 0;

  std::vector<int32_t> Sequence(int64_t n) const {
    return {ids.begin() + n * length, ids.begin() + (n + 1) * length};
  }
};

// Errors: a file without input_ids of the model's vocabulary, or whose attention_mask masks
// anything.
Result<Reference> OpenReference(const std::string& path, const TextConfig& config);

// Whole numbers of any of the types that files keep ids in.
Result<std::vector<int64_t>> ReadIntegers(const SafetensorsFile& file, const TensorInfo& info);

Comparison Differ(const std::string& name, std::span<const float> ours,
                  std::span<const float> theirs, double tolerance);

}  // namespace mm01::eval
