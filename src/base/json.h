// JSON from untrusted texts, read into values of nlohmann/json by a reader that refuses what would
// hurt later. Memory beside the values: the keys of the objects that are open, twice.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/json_fwd.h"
#include "base/status.h"

namespace mm01 {

struct JsonLimits {
  size_t max_bytes = 128u << 20;
  int max_depth = 64;  // nlohmann overflows the stack when it copies deep values
};

// Parses all of `text`. Ill-formed text or UTF-8, a key given twice in one object, or a text over
// the limits is an error that names `where` and the place.
Result<Json> ParseJson(std::string_view text, const std::string& where,
                       const JsonLimits& limits = {});

// What a text holds, token by token, without a tree of values. `events` is called until one of its
// functions returns false; so does this then. A byte 0 ends the text.
using JsonEvents = nlohmann::json_sax<Json>;
bool ReadJsonEvents(std::string_view text, JsonEvents* events);
bool IsJson(std::string_view text);

// One line, or indented by so many blanks; bytes that are no UTF-8 become U+FFFD.
std::string JsonText(const Json& json, int indent = -1);

}  // namespace mm01
