// Any bytes as a config.json: an error, or a configuration that its own spelling gives back.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "base/json.h"
#include "model/text01/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = mm01::ParseJson(text, "fuzz");
  if (!json.ok()) return 0;
  const auto config = mm01::ParseTextConfig(*json, "fuzz");
  if (!config.ok()) return 0;
  mm01::Check(config->Validate().ok(), "what was parsed is valid");
  const auto again = mm01::ParseTextConfig(mm01::ToJson(*config), "fuzz");
  mm01::Check(again.ok(), again.status().message());
  return 0;
}
