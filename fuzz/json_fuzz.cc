// Any bytes as JSON: nlohmann accepts the same texts, and makes the same values of them. Keys given
// twice and deep nesting are refused here alone.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "base/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (text.find('\0') != text.npos) return 0;  // which nlohmann takes for the end
  const auto json = mm01::ParseJson(text, "fuzz");
  if (!json.ok()) {
    const bool is_stricter = json.status().message().find("not JSON") == std::string::npos;
    mm01::Check(is_stricter || !mm01::Json::accept(text), json.status().message());
    return 0;
  }
  const mm01::Json wanted = mm01::Json::parse(text, nullptr, false);
  mm01::Check(!wanted.is_discarded() && *json == wanted, "nlohmann reads something else");
  return 0;
}
