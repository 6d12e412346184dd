#include "train/data/documents.h"

#include <fmt/core.h>

#include <string_view>
#include <utility>
#include <vector>

#include "io/json_fields.h"
#include "io/tokenizer.h"

namespace mm01::train {
namespace {

constexpr size_t kReadBytes = 1 << 20;

bool IsJsonl(std::string_view path) {
  for (const std::string_view packed : {".xz", ".gz", ".zst", ".bz2"}) {
    if (path.ends_with(packed)) path.remove_suffix(packed.size());
  }
  return path.ends_with(".jsonl");
}

Result<Document> ParseLine(std::string_view line, const std::string& where) {
  MM01_ASSIGN_OR_RETURN(Json json, ParseJson(line, where));
  if (json.is_object() && json.contains("text") && json["text"].is_string()) {
    return Document{.text = json["text"].get<std::string>()};
  }
  if (json.is_object() && json.contains("messages") && json["messages"].is_array()) {
    return Document{.messages = std::move(json["messages"])};
  }
  return Status::Invalid(where +
                         R"(: wanted an object with "text", a string, or "messages", an array)");
}

}  // namespace

Status ReadDocuments(const std::string& path,
                     const std::function<Status(Document document)>& on_document,
                     const std::function<void(int64_t, int64_t)>& on_progress) {
  MM01_ASSIGN_OR_RETURN(UnpackedFile file, UnpackedFile::Open(path));
  const bool is_jsonl = IsJsonl(path);
  int64_t num_records = 0;
  std::string record;
  const auto flush = [&]() -> Status {
    ++num_records;
    if (is_jsonl && record.ends_with('\r')) record.pop_back();
    if (record.empty()) return Status::Ok();
    Document document;
    if (is_jsonl) {
      MM01_ASSIGN_OR_RETURN(document, ParseLine(record, fmt::format("{}:{}", path, num_records)));
    } else {
      document.text = std::move(record);
    }
    record.clear();
    return on_document(std::move(document));
  };
  std::vector<char> room(kReadBytes);
  while (true) {
    MM01_ASSIGN_OR_RETURN(const size_t n, file.Read(room));
    if (n == 0) return flush();
    std::string_view rest(room.data(), n);
    while (!rest.empty()) {
      const size_t end = rest.find(is_jsonl ? '\n' : '\0');
      record += rest.substr(0, end);
      if (record.size() > Tokenizer::kMaxTextBytes) {
        return Status::TooLarge(fmt::format("{}: document {} has more than {} bytes", path,
                                            num_records + 1, Tokenizer::kMaxTextBytes));
      }
      if (end == std::string_view::npos) break;
      MM01_RETURN_IF_ERROR(flush());
      rest.remove_prefix(end + 1);
    }
    if (on_progress) on_progress(file.packed_bytes_read(), file.packed_bytes());
  }
}

}  // namespace mm01::train
