// Any bytes as a token shard: an error, or a shard that can be read to its end. Few inputs get past
// the hash, so the header is what this is about.
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>

#include "base/check.h"
#include "train/data/shard.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string path = "/tmp/mm01_shard_fuzz_" + std::to_string(::getpid());
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  const auto shard = mm01::train::TokenShard::Open(path);
  if (shard.ok()) {
    mm01::train::TokenSpan span;
    mm01::Check(shard->Read(0, shard->num_tokens(), &span).ok(), "all tokens can be read");
  }
  ::unlink(path.c_str());
  return 0;
}
