// Documents out of a text file, plain or packed, one after the other.
//
//   NUL      documents of UTF-8 text, apart by a NUL byte
//   JSONL    a line is {"text": "..."} or {"messages": [{"role": ..., "content": ...}, ...]}
//
// JSONL is told by the file's name (.jsonl, with a packed file's ending behind it).
// Errors    Invalid for a line that is neither, with its number; those of io/unpack.h.
// Cost      one pass; one document in memory, at most 1 GiB.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/json.h"
#include "base/status.h"
#include "io/unpack.h"

namespace mm01::train {

// The token behind a document, where the tokenizer has it.
inline constexpr const char* kEndOfDocument = "<end_of_document>";

struct Document {
  std::string text;
  Json messages;  // an array where the document is a chat; then there is no text
};

// Hands every document that is not empty to `on_document`, until it returns an error.
// `on_progress` gets the bytes of the file that were read, and all of them.
Status ReadDocuments(const std::string& path,
                     const std::function<Status(Document document)>& on_document,
                     const std::function<void(int64_t, int64_t)>& on_progress = {});

}  // namespace mm01::train
