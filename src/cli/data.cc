// mm01 data: text to token shards, and a look at them.
#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "base/format.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "cli/commands.h"
#include "cli/data_preview.h"
#include "cli/model_flags.h"
#include "cli/progress.h"
#include "infer/machine.h"
#include "io/encode_pieces.h"
#include "io/file.h"
#include "train/data/documents.h"
#include "train/data/shard.h"
#include "train/digest.h"

namespace mm01::cli {
namespace {

struct DataFlags {
  std::string action, path;
  std::optional<std::string> out, tokenizer;
  std::string end = train::kEndOfDocument;
  std::optional<std::string> end_flag;
  int64_t shard_tokens = int64_t{1} << 25;
  std::optional<int64_t> threads;
  PreviewOptions preview;
  bool quiet = false;
};

constexpr size_t kBatchBytes = 8 << 20;  // of text that is encoded at a time
constexpr int64_t kMaxTokenizerBytes = 128 << 20;

// A chat's tokens. The loss counts what the assistant says and the token that ends it: everything
// that the template puts behind a prompt that waits for an answer.
Result<train::TokenSpan> EncodeChat(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                    const Json& messages) {
  train::TokenSpan span;
  const auto render = [&](size_t count, bool waits) -> Result<std::vector<int32_t>> {
    Json first = Json::array();
    for (size_t i = 0; i < count; ++i) first.push_back(messages[i]);
    MM01_ASSIGN_OR_RETURN(const auto pieces, chat_template.Render(first, nullptr, waits));
    MM01_ASSIGN_OR_RETURN(EncodedPieces encoded, EncodePieces(tokenizer, pieces));
    return std::move(encoded.ids);
  };
  MM01_ASSIGN_OR_RETURN(span.ids, render(messages.size(), false));
  span.counted.assign(span.ids.size(), 0);
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object() || messages[i].value("role", "") != "assistant") continue;
    MM01_ASSIGN_OR_RETURN(const auto before, render(i, true));
    MM01_ASSIGN_OR_RETURN(const auto after, render(i + 1, false));
    const bool whole = before.size() <= after.size() && after.size() <= span.ids.size() &&
                       std::equal(before.begin(), before.end(), span.ids.begin()) &&
                       std::equal(after.begin(), after.end(), span.ids.begin());
    if (!whole) continue;  // a template that looks ahead: this answer is read and not counted
    std::fill(span.counted.begin() + std::ssize(before), span.counted.begin() + std::ssize(after),
              1);
  }
  return span;
}

// Documents come one by one and are encoded in batches, in parallel; they are written in order.
class Builder {
 public:
  Builder(const DataFlags& flags, const Tokenizer& tokenizer, const ChatTemplate& chat_template,
          train::DataSetWriter& writer, ThreadPool& pool)
      : tokenizer_(tokenizer),
        chat_template_(chat_template),
        writer_(writer),
        pool_(pool),
        end_(tokenizer.Find(flags.end)) {}

  Status Add(train::Document document) {
    batch_bytes_ += document.text.size() + 1024;
    batch_.push_back(std::move(document));
    return batch_bytes_ < kBatchBytes ? Status::Ok() : Flush();
  }

  Status Flush() {
    std::vector<Result<train::TokenSpan>> spans(batch_.size(), train::TokenSpan());
    pool_.ParallelFor(std::ssize(batch_), [&](int64_t i, int) {
      spans[static_cast<size_t>(i)] = Encode(batch_[static_cast<size_t>(i)]);
    });
    for (const auto& span : spans) {
      MM01_RETURN_IF_ERROR(span.status());
      MM01_RETURN_IF_ERROR(writer_.Add(*span));
    }
    batch_.clear();
    batch_bytes_ = 0;
    return Status::Ok();
  }

 private:
  Result<train::TokenSpan> Encode(const train::Document& document) const {
    train::TokenSpan span;
    if (document.messages.is_array()) {
      MM01_ASSIGN_OR_RETURN(span, EncodeChat(tokenizer_, chat_template_, document.messages));
    } else {
      MM01_ASSIGN_OR_RETURN(span.ids,
                            tokenizer_.Encode(document.text, Tokenizer::Special::kAsText));
      span.counted.assign(span.ids.size(), 1);
    }
    if (end_) {
      span.ids.push_back(*end_);
      span.counted.push_back(1);
    }
    return span;
  }

  const Tokenizer& tokenizer_;
  const ChatTemplate& chat_template_;
  train::DataSetWriter& writer_;
  ThreadPool& pool_;
  std::optional<int32_t> end_;
  std::vector<train::Document> batch_;
  size_t batch_bytes_ = 0;
};

Result<std::string> TokenizerDigest(const std::string& path) {
  const bool is_file = path.ends_with(".json");
  MM01_ASSIGN_OR_RETURN(const std::string text,
                        ReadFile(is_file ? path : path + "/tokenizer.json", kMaxTokenizerBytes));
  return train::DigestOf(text);
}

Result<int> Build(const DataFlags& flags) {
  if (!flags.out) return Status::Invalid("OUT is missing, wanted a new or empty folder");
  if (!flags.tokenizer) {
    return Status::Invalid("--tokenizer is missing, wanted a folder with tokenizer.json");
  }
  const Notes notes(flags.quiet);
  MM01_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(*flags.tokenizer));
  if (flags.end_flag && !flags.end.empty() && !tokenizer.Find(flags.end)) {
    return Status::Invalid(
        fmt::format("--end is '{}', wanted a token of {}", flags.end, *flags.tokenizer));
  }
  std::optional<ChatTemplate> own;
  if (!flags.tokenizer->ends_with(".json")) {
    MM01_ASSIGN_OR_RETURN(own, LoadChatTemplate(*flags.tokenizer));
  }
  train::DataSetInfo info{.source = flags.path, .vocab_size = tokenizer.size()};
  MM01_ASSIGN_OR_RETURN(info.tokenizer_digest, TokenizerDigest(*flags.tokenizer));
  MM01_ASSIGN_OR_RETURN(train::DataSetWriter writer,
                        train::DataSetWriter::Create(*flags.out, info, flags.shard_tokens));
  ThreadPool pool(flags.threads ? static_cast<int>(*flags.threads) : infer::AvailableCores());
  Builder builder(flags, tokenizer, own ? *own : ChatTemplate::Text01(), writer, pool);
  const InterruptScope interrupt;
  Progress progress(notes, "reading", Progress::Unit::kBytes);
  MM01_RETURN_IF_ERROR(train::ReadDocuments(
      flags.path,
      [&](train::Document document) {
        if (InterruptScope::requested()) return Status::Cancelled("stopped; OUT is no data set");
        return builder.Add(std::move(document));
      },
      [&](int64_t done, int64_t all) { progress.Update(done, all); }));
  MM01_RETURN_IF_ERROR(builder.Flush());
  MM01_ASSIGN_OR_RETURN(info, writer.Finish());
  Print(fmt::format("{}: {} documents, {} tokens of {}, in {}\n", *flags.out,
                    FormatCount(info.num_documents), FormatCount(info.num_tokens), *flags.tokenizer,
                    FormatSeconds(progress.seconds())));
  return kExitOk;
}

Result<int> RunData(DataFlags flags) {
  if (flags.end_flag) flags.end = *flags.end_flag;
  if (flags.action == "build") return Build(flags);
  if (flags.action == "preview") return Preview(flags.path, flags.tokenizer, flags.preview);
  return Status::Invalid(fmt::format("ACTION is '{}', wanted build or preview", flags.action));
}

}  // namespace

void AddData(CommandLine& line) {
  auto flags = std::make_shared<DataFlags>();
  Command& command = line.Add(
      {"data",
       "Turns text into token shards, and shows them: data build, data preview.",
       "build: documents in FILE are apart by NUL bytes, or one a line where its name ends in "
       ".jsonl: {\"text\": ...} or {\"messages\": [...]}, a chat, of which the loss counts what "
       "the assistant says. xz, gzip, zstd and bzip2 are unpacked on the way. The shards of a "
       "data set come into the folder OUT.\n\n"
       "preview: FILE is such a folder, or a recipe; then the first rows of its training are "
       "shown, with the tokens apart, the ends of documents, and what the loss counts.",
       {"mm01 data build texts.txt.xz data/texts --tokenizer models/nano",
        "mm01 data preview data/texts --tokenizer models/nano",
        "mm01 data preview recipes/tiny-cpu.toml"}});
  command.Required("ACTION", &flags->action, "build or preview");
  command.Required("FILE", &flags->path, "text, or what to show");
  command.Optional("OUT", &flags->out, "of build: the folder to write, new or empty");
  command.Section("Building");
  command.Text("--tokenizer", "DIR", &flags->tokenizer,
               "folder with tokenizer.json, or that file; needed but for the preview of a recipe");
  command.Text("--end", "TOKEN", &flags->end_flag,
               "what ends a document, '' for nothing (default: <end_of_document> where there is "
               "one)");
  command.Whole("--shard-tokens", "N", &flags->shard_tokens, kAtLeastOne, "tokens of one shard");
  AddThreadsFlag(command, &flags->threads);
  command.Section("Preview");
  command.Whole("--rows", "N", &flags->preview.rows, kAtLeastOne, "rows or documents to show");
  command.Whole("--tokens", "N", &flags->preview.tokens, kAtLeastOne,
                "tokens to show of each document");
  command.Whole("--step", "N", &flags->preview.step, kAtLeastZero,
                "of a recipe: the step whose rows are shown");
  AddQuietFlag(command, &flags->quiet);
  command.Action([flags] {
    const Result<int> code = RunData(*flags);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
