#include "eval/reference.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace mm01::eval {

void CompareReport::Judge() {
  const auto bad = std::ranges::find(tensors, false, &Comparison::ok);
  first_deviating = bad == tensors.end() ? "" : bad->name;
}

Result<std::vector<int64_t>> ReadIntegers(const SafetensorsFile& file, const TensorInfo& info) {
  if (info.dtype == DType::kI64) return file.ReadAll<int64_t>(info);
  if (info.dtype == DType::kI32) {
    MM01_ASSIGN_OR_RETURN(const auto narrow, file.ReadAll<int32_t>(info));
    return std::vector<int64_t>(narrow.begin(), narrow.end());
  }
  return Status::Unsupported(fmt::format("{}: {} is {}, wanted int64 or int32", file.path(),
                                         info.name, ToString(info.dtype)));
}

Result<Reference> OpenReference(const std::string& path, const TextConfig& config) {
  MM01_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
  Reference r{.file = std::move(file)};
  const TensorInfo* ids = r.file.Find("input_ids");
  if (!ids || ids->shape.empty() || ids->shape.size() > 2 || ids->num_elements() == 0) {
    return Status::Invalid(path + ": a reference needs input_ids of shape [N, T] or [T]");
  }
  MM01_ASSIGN_OR_RETURN(r.ids, ReadIntegers(r.file, *ids));
  r.length = ids->shape.back();
  r.num_sequences = ids->num_elements() / r.length;
  for (int64_t id : r.ids) {
    if (id >= 0 && id < config.vocab_size) continue;
    return Status::Invalid(fmt::format("{}: input_ids holds {}, the model's vocabulary is 0 to {}",
                                       path, id, config.vocab_size - 1));
  }
  if (const TensorInfo* mask = r.file.Find("attention_mask")) {
    MM01_ASSIGN_OR_RETURN(const auto values, ReadIntegers(r.file, *mask));
    if (std::ranges::any_of(values, [](int64_t m) { return m != 1; })) {
      return Status::Unsupported(path + ": attention_mask masks tokens, wanted all ones");
    }
  }
  return r;
}

Comparison Differ(const std::string& name, std::span<const float> ours,
                  std::span<const float> theirs, double tolerance) {
  Comparison c{.name = name, .num_values = static_cast<int64_t>(theirs.size())};
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < theirs.size(); ++i) {
    const double d = static_cast<double>(ours[i]) - static_cast<double>(theirs[i]);
    difference += d * d;
    norm += static_cast<double>(theirs[i]) * static_cast<double>(theirs[i]);
    c.largest_difference = std::max(c.largest_difference, std::abs(d));
  }
  c.relative_error = norm > 0.0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  c.ok = c.relative_error <= tolerance;  // false for NaN
  return c;
}

}  // namespace mm01::eval
