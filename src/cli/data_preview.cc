#include "cli/data_preview.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "base/format.h"
#include "cli/command_line.h"
#include "cli/console.h"
#include "io/tokenizer.h"
#include "train/data/mixer.h"

namespace mm01::cli {
namespace {

// The bytes of a token, on one line whatever they are.
std::string Visible(const std::string& bytes) {
  std::string text;
  for (const char c : bytes) {
    if (c == '\n') {
      text += "\\n";
    } else if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) {
      text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      text += c;
    }
  }
  return text;
}

class Painter {
 public:
  explicit Painter(const Tokenizer& tokenizer)
      : tokenizer_(tokenizer), colour_(OutputIsTerminal()) {}

  // counted[i]: the loss asks for token i.
  std::string Tokens(const std::vector<int32_t>& ids, const std::vector<uint8_t>& counted,
                     int64_t most) {
    std::string text;
    const int64_t n = std::min<int64_t>(most, std::ssize(ids));
    for (int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(i);
      const std::string token = Visible(tokenizer_.Bytes(ids[at]));
      if (colour_) {
        text += fmt::format("\x1b[{}{}m{}\x1b[0m", counted[at] ? "4;" : "", 30 + 1 + i % 6, token);
      } else {
        text += (counted[at] ? "|" : "|-") + token;
      }
    }
    if (!colour_) text += "|";
    if (n < std::ssize(ids)) text += fmt::format(" ... {} more", FormatCount(std::ssize(ids) - n));
    return text;
  }

  std::string Legend() const {
    return colour_ ? "underlined: what the loss counts\n" : "|- before what the loss leaves out\n";
  }

 private:
  const Tokenizer& tokenizer_;
  bool colour_;
};

Result<int> PreviewDataSet(const std::string& folder, const std::string& tokenizer_path,
                           const PreviewOptions& options) {
  MM01_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(tokenizer_path));
  MM01_ASSIGN_OR_RETURN(const train::DataSet set, train::DataSet::Open(folder));
  Painter painter(tokenizer);
  Print(fmt::format("{}: {} documents, {} tokens, from {}\n{}", folder,
                    FormatCount(set.num_documents()), FormatCount(set.info().num_tokens),
                    set.info().source, painter.Legend()));
  for (int64_t d = 0; d < std::min(options.rows, set.num_documents()); ++d) {
    train::TokenSpan span;
    MM01_RETURN_IF_ERROR(set.Read(d, 0, set.Length(d), &span));
    Print(fmt::format("\ndocument {}, {} tokens\n{}\n", d, FormatCount(set.Length(d)),
                      painter.Tokens(span.ids, span.counted, options.tokens)));
  }
  return kExitOk;
}

void PrintRow(const train::Row& row, const train::RowPlan& plan, int64_t most, Painter& painter) {
  Print(fmt::format("\nrow {} of '{}', {} tokens in {} pieces\n", plan.number, plan.name,
                    FormatCount(row.length()), row.documents.size()));
  for (size_t d = 0; d < row.documents.size(); ++d) {
    const auto begin = row.cu_seqlens[d], end = row.cu_seqlens[d + 1];
    const std::vector<int32_t> ids(row.ids.begin() + begin, row.ids.begin() + end);
    // The first token of a piece is no target.
    std::vector<uint8_t> counted = {0};
    for (int64_t t = begin; t + 1 < end; ++t) {
      counted.push_back(row.targets[static_cast<size_t>(t)] >= 0);
    }
    const std::string of =
        row.documents[d] < 0 ? "made" : fmt::format("document {}", row.documents[d]);
    Print(fmt::format("  [{}, {}) {}: {}\n", begin, end, of, painter.Tokens(ids, counted, most)));
  }
}

Result<int> PreviewRecipe(const std::string& path, const PreviewOptions& options) {
  MM01_ASSIGN_OR_RETURN(const train::Recipe recipe, train::LoadRecipe(path));
  MM01_ASSIGN_OR_RETURN(const auto data, train::TrainData::Load(recipe));
  if (options.step >= recipe.total_steps()) {
    return Status::Invalid(fmt::format("--step is {}, wanted below {}, the steps of {}",
                                       options.step, recipe.total_steps(), path));
  }
  Painter painter(*data->tokenizer);
  train::Mixer mixer(recipe, *data);
  std::vector<train::RowPlan> plans;
  for (int64_t step = 0; step <= options.step; ++step) plans = mixer.Next(step);
  Print(fmt::format("step {} of {}: {} rows\n{}", options.step, path, plans.size(),
                    painter.Legend()));
  const auto rows = std::min<int64_t>(options.rows, std::ssize(plans));
  for (const train::RowPlan& plan : std::span(plans).first(static_cast<size_t>(rows))) {
    MM01_ASSIGN_OR_RETURN(const train::Row row, mixer.Make(plan));
    PrintRow(row, plan, options.tokens, painter);
  }
  return kExitOk;
}

}  // namespace

Result<int> Preview(const std::string& path, const std::optional<std::string>& tokenizer,
                    const PreviewOptions& options) {
  if (path.ends_with(".toml")) return PreviewRecipe(path, options);
  if (!tokenizer) {
    return Status::Invalid("--tokenizer is missing, wanted the one that the data was made with");
  }
  return PreviewDataSet(path, *tokenizer, options);
}

}  // namespace mm01::cli
