#include "infer/prefix_keys.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "base/check.h"

namespace mm01::infer {
namespace {

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    Check(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1,
          "libcrypto has no SHA-256");
  }
  void Add(const void* data, size_t size) {
    Check(EVP_DigestUpdate(context_.get(), data, size) == 1, "SHA-256 failed");
  }
  // And begins anew.
  PrefixKey Value() {
    PrefixKey key;
    Check(EVP_DigestFinal_ex(context_.get(), key.bytes.data(), nullptr) == 1 &&
              EVP_DigestInit_ex(context_.get(), nullptr, nullptr) == 1,
          "SHA-256 failed");
    return key;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;
};

}  // namespace

std::string PrefixKey::ToHex() const {
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

PrefixKey PrefixRoot(std::string_view model, std::string_view salt) {
  Sha256 hash;
  const std::string head = fmt::format("mm01-prefix 1 {}:", model.size());
  hash.Add(head.data(), head.size());
  hash.Add(model.data(), model.size());
  hash.Add(salt.data(), salt.size());
  return hash.Value();
}

void ExtendPrefixKeys(const PrefixKey& root, std::span<const int32_t> tokens,
                      std::vector<PrefixKey>* keys) {
  constexpr auto kBlock = static_cast<size_t>(kLightningBlock);
  Sha256 hash;
  for (size_t i = keys->size(); (i + 1) * kBlock <= tokens.size(); ++i) {
    const PrefixKey& before = i > 0 ? (*keys)[i - 1] : root;
    hash.Add(before.bytes.data(), before.bytes.size());
    std::array<uint8_t, 4 * kBlock> bytes;
    for (size_t t = 0; t < kBlock; ++t) {
      const auto token = static_cast<uint32_t>(tokens[i * kBlock + t]);
      for (size_t b = 0; b < 4; ++b) bytes[4 * t + b] = static_cast<uint8_t>(token >> (8 * b));
    }
    hash.Add(bytes.data(), bytes.size());
    keys->push_back(hash.Value());
  }
}

int64_t CommonBlocks(std::span<const PrefixKey> a, std::span<const PrefixKey> b) {
  // A chain that agrees at one place agrees everywhere before it.
  size_t low = 0, high = std::min(a.size(), b.size());
  while (low < high) {
    const size_t middle = (low + high + 1) / 2;
    if (a[middle - 1] == b[middle - 1]) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return static_cast<int64_t>(low);
}

int64_t RecentBlocks::CommonWith(std::span<const PrefixKey> keys) {
  const auto short_name = [](const PrefixKey& key) { return PrefixKeyHash()(key); };
  int64_t common = 0;
  while (common < std::ssize(keys)) {
    const uint64_t name = short_name(keys[static_cast<size_t>(common)]);
    if (!now_.contains(name) && !before_.contains(name)) break;
    ++common;
  }
  for (const PrefixKey& key : keys) {
    if (now_.size() >= most_) {
      before_ = std::move(now_);
      now_.clear();
    }
    now_.insert(short_name(key));
  }
  return common;
}

}  // namespace mm01::infer
