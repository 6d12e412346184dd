// mm01 perplexity: how well a model predicts a text.
#include "eval/perplexity.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/format.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/progress.h"
#include "cli/prompt.h"

namespace mm01::cli {
namespace {

struct PerplexityFlags {
  ModelFlags model;
  std::string file;
  std::optional<int64_t> max_tokens, documents;
  bool json = false;
};

using Documents = std::vector<std::vector<int32_t>>;

Result<Documents> ReadDocuments(const PerplexityFlags& flags) {
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadText(flags.file));
  MM01_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(flags.model.model));
  Documents documents;
  for (size_t begin = 0; begin < text.size();) {
    if (flags.documents && static_cast<int64_t>(documents.size()) == *flags.documents) break;
    const size_t end = std::min(text.find('\0', begin), text.size());
    MM01_ASSIGN_OR_RETURN(auto tokens,
                          tokenizer.Encode(std::string_view(text).substr(begin, end - begin),
                                           Tokenizer::Special::kAsText));
    if (flags.max_tokens && static_cast<int64_t>(tokens.size()) > *flags.max_tokens) {
      tokens.resize(static_cast<size_t>(*flags.max_tokens));
    }
    if (!tokens.empty()) documents.push_back(std::move(tokens));
    begin = end + 1;
  }
  return documents;
}

std::string Table(const eval::Perplexity& p) {
  std::string text =
      fmt::format("{:>21}{:>12}{:>12}{:>12}\n", "position", "tokens", "nats/token", "perplexity");
  const auto row = [&](const std::string& position, int64_t tokens, double nats) {
    const double mean = nats / static_cast<double>(tokens);
    text += fmt::format("{:>21}{:>12}{:>12.5f}{:>12.3f}\n", position, FormatCount(tokens), mean,
                        std::exp(mean));
  };
  for (const eval::PositionBucket& b : p.buckets) {
    const std::string last = b.end - b.begin > 1 ? " - " + FormatCount(b.end - 1) : "";
    row(FormatCount(b.begin) + last, b.num_tokens, b.nats);
  }
  row("all", p.num_tokens, p.nats);
  return text;
}

Json ToJson(const eval::Perplexity& p, double seconds, infer::Engine& engine) {
  Json buckets = Json::array();
  for (const eval::PositionBucket& b : p.buckets) {
    buckets.push_back({{"begin", b.begin},
                       {"end", b.end},
                       {"tokens", b.num_tokens},
                       {"nats_per_token", b.nats / static_cast<double>(b.num_tokens)}});
  }
  return {{"nats_per_token", p.nats_per_token()},
          {"perplexity", std::exp(p.nats_per_token())},
          {"documents", p.num_documents},
          {"tokens", p.num_tokens},
          {"seconds", seconds},
          {"buckets", buckets},
          {"memory", MemoryJson(engine)}};
}

Result<int> RunPerplexity(const PerplexityFlags& flags) {
  const Notes notes(flags.model.quiet);
  MM01_ASSIGN_OR_RETURN(const Documents documents, ReadDocuments(flags));
  int64_t longest = 0, total = 0;
  for (const auto& d : documents) {
    longest = std::max(longest, static_cast<int64_t>(d.size()));
    total += static_cast<int64_t>(d.size());
  }
  if (longest < 2) {
    return Status::Invalid(fmt::format("{}: its longest document has {} tokens, wanted at least 2",
                                       flags.file, longest));
  }
  MM01_ASSIGN_OR_RETURN(
      const LoadedModel model,
      LoadModel(flags.model, {.kv = DType::kF32, .context_tokens = longest}, notes));
  const InterruptScope interrupt;
  Progress progress(notes, "reading", Progress::Unit::kTokens);
  MM01_ASSIGN_OR_RETURN(
      const eval::Perplexity p,
      eval::MeasurePerplexity(*model.engine, documents, [&](int64_t done, int64_t all) {
        progress.Update(done, all);
        return !InterruptScope::requested();
      }));
  const double seconds = progress.seconds();
  Print(flags.json ? JsonText(ToJson(p, seconds, *model.engine), 2) + "\n" : Table(p));
  notes.WriteFaint(fmt::format("{} documents, {} tokens in {}, {:.0f} tokens/s\nmemory: {}\n",
                               FormatCount(p.num_documents), FormatCount(total),
                               FormatSeconds(seconds), static_cast<double>(total) / seconds,
                               MemoryText(*model.engine)));
  return kExitOk;
}

}  // namespace

void AddPerplexity(CommandLine& line) {
  auto flags = std::make_shared<PerplexityFlags>();
  Command& command = line.Add(
      {"perplexity",
       "Measures how well a model predicts a text, in nats a token.",
       "Documents in FILE are apart by NUL bytes; each is read alone, from its first token, and "
       "every token but the first is predicted. The table has one line for positions 1, 2-3, 4-7 "
       "and so on, and one for all. The KV cache is float32 unless --kv is given, so that weights "
       "alone are measured.",
       {"mm01 perplexity models/nano data/the-iron-heel.txt --max-tokens-per-document 8192",
        "xz -dc texts.xz | mm01 perplexity models/nano -"}});
  AddModelArgument(command, &flags->model);
  command.Required("FILE", &flags->file, "plain text, '-' for standard input");
  command.Whole("--max-tokens-per-document", "N", &flags->max_tokens, {2, kAtLeastOne.max},
                "read the first N tokens of each document (default: all)");
  command.Whole("--documents", "N", &flags->documents, kAtLeastOne,
                "read the first N documents (default: all)");
  command.Switch("--json", &flags->json, "one JSON object in place of the table");
  AddModelFlags(command, &flags->model, "the longest document");
  command.Action([flags] {
    const Result<int> code = RunPerplexity(*flags);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
