#include "infer/next_token.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "base/rng.h"
#include "testing/arrays.h"

namespace mm01::infer {
namespace {

class EvenTokens : public TokenFilter {
 public:
  void Mask(std::span<float> logits) override {
    for (size_t i = 1; i < logits.size(); i += 2) logits[i] = -INFINITY;
  }
  void Accept(int32_t) override {}
};

// Of every kind: those that SampleRows draws, and those that it leaves to the CPU.
std::vector<Request> Requests(uint64_t seed) {
  std::vector<Request> all(9);
  for (Request& r : all) {
    r.prompt = {1, 2, 3};
    r.generate.sampling.seed = seed;
  }
  all[0].generate.sampling.temperature = 0;
  all[1].generate.sampling = {.temperature = 0.7, .top_k = 30, .top_p = 0.9, .seed = seed};
  all[2].generate.sampling = {.temperature = 0.5, .top_p = 0.8, .min_p = 0.01, .seed = seed};
  all[3].generate.sampling = {.top_k = 5, .repetition_penalty = 1.5, .seed = seed};
  all[3].presence_penalty = 0.5;
  all[3].frequency_penalty = 0.25;
  all[3].logit_bias = {{4, -1.5f}};
  all[4].logit_bias = {{4, 2.5f}};
  all[5].top_logprobs = 2;
  all[6].filter = std::make_unique<EvenTokens>();
  all[7].generate.max_tokens = 0;
  return all;
}

TEST(DrawFromRowsTest, ADeviceDrawsTheTokensOfTheCpu) {
  constexpr int64_t kVocabulary = 2000;
  Queue queue(2);
  const std::vector<int32_t> tokens = {1, 2, 3, 700, 4, 4};
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const std::vector<Request> requests = Requests(seed);
    std::vector<Draw> here, there;
    for (const Request& r : requests) {
      here.push_back({.request = r, .tokens = tokens});
      there.push_back({.request = r, .tokens = tokens});
    }
    const auto rows = std::ssize(requests);
    const std::vector<float> x = RandomFloats(seed, rows * kVocabulary);
    std::vector<float> a = x, b = x;
    DrawFromRows(queue, Tensor(a.data(), {rows, kVocabulary}), here, false);
    DrawFromRows(queue, Tensor(b.data(), {rows, kVocabulary}), there, true);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(there[i].info.token, here[i].info.token) << "request " << i;
      EXPECT_EQ(there[i].info.top, here[i].info.top);
      EXPECT_FALSE(there[i].error);
    }
    EXPECT_TRUE(std::equal(b.begin(), b.begin() + kVocabulary, x.begin())) << "not on the device";
  }
}

}  // namespace
}  // namespace mm01::infer
