// Any bytes as a schema: an error, or a grammar in which every state that can be reached leads on.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "base/json.h"
#include "infer/grammar.h"
#include "infer/json_filter.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto schema = mm01::ParseJson(text, "fuzz");
  if (!schema.ok()) return 0;
  const auto grammar = mm01::infer::CompileSchema(*schema);
  if (!grammar.ok()) return 0;
  mm01::infer::Matcher matcher(**grammar);
  int32_t state = matcher.start();
  uint32_t random = static_cast<uint32_t>(size);
  for (int i = 0; i < 100 && matcher.HasNext(state); ++i) {
    int32_t next = mm01::infer::Matcher::kDead;
    for (int tries = 0; tries < 256 && next == mm01::infer::Matcher::kDead; ++tries) {
      random = random * 1664525 + 1013904223;
      next = matcher.Next(state, static_cast<uint8_t>((random >> 24) + tries));
    }
    for (int byte = 0; byte < 256 && next == mm01::infer::Matcher::kDead; ++byte) {
      next = matcher.Next(state, static_cast<uint8_t>(byte));
    }
    mm01::Check(next != mm01::infer::Matcher::kDead, "a dead end");
    state = next;
  }
  mm01::Check(matcher.HasNext(state) || matcher.CanEnd(state), "a dead end");
  return 0;
}
