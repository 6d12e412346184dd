// What training sees, on a terminal: tokens in alternating colours, the ends of documents, and what
// the loss counts underlined; elsewhere tokens apart by '|'.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"

namespace mm01::cli {

struct PreviewOptions {
  int64_t rows = 4;
  int64_t tokens = 120;
  int64_t step = 0;
};

// `path` is a data set, which needs a tokenizer, or a recipe (.toml). The exit code.
Result<int> Preview(const std::string& path, const std::optional<std::string>& tokenizer,
                    const PreviewOptions& options);

}  // namespace mm01::cli
