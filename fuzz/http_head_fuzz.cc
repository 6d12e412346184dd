// Any bytes as the head of a request: an error, or a head whose framing is one of three.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "server/http_head.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto head = mm01::server::ParseHead(text);
  if (!head.ok()) return 0;
  mm01::Check(head->path.starts_with('/'), "a target that was taken begins with '/'");
  mm01::Check(!(head->is_chunked && head->body_length > 0), "one framing");
  mm01::Check(!(head->is_chunked && head->is_http10), "no chunks in HTTP/1.0");
  return 0;
}
