// What a body of JSON would take in memory, seen before it is parsed: two bytes of text can become
// 16, and an empty list or text 50 and more. So the number of values is bounded, not only that of
// bytes.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/status.h"

namespace mm01::server {

inline constexpr int64_t kMaxBodyLists = 65'536;     // lists and objects
inline constexpr int64_t kMaxBodyTexts = 131'072;    // texts and names of members
inline constexpr int64_t kMaxBodyEntries = 131'072;  // of all lists and objects together,
inline constexpr int64_t kMaxPromptsOfIds = 2;       // and this many for each token of the context

// Invalid where it has more. Says nothing about text that is not JSON. O(bytes), no memory.
Status CheckBodyCounts(std::string_view body, int64_t context_tokens);

}  // namespace mm01::server
