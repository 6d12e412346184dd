#include "train/digest.h"

#include <fmt/core.h>
#include <xxhash.h>

namespace mm01::train {

struct Digest::State {
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash{XXH3_createState(),
                                                                       XXH3_freeState};
};

Digest::Digest() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(state_->hash.get());
}

Digest::~Digest() = default;

void Digest::Add(std::span<const std::byte> bytes) {
  if (!bytes.empty()) XXH3_128bits_update(state_->hash.get(), bytes.data(), bytes.size());
}

std::string Digest::Hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->hash.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string DigestOf(std::span<const std::byte> bytes) {
  Digest digest;
  digest.Add(bytes);
  return digest.Hex();
}

std::string DigestOf(std::string_view text) {
  return DigestOf(std::as_bytes(std::span(text)));
}

}  // namespace mm01::train
