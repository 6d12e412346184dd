// A model with no softmax layers reads a million tokens in the memory of a few thousand.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "infer/machine.h"
#include "infer/session.h"
#include "testing/tiny_model.h"

namespace mm01 {
namespace {

TEST(FlatMemorySlow, AMillionTokensGrowNothing) {
  constexpr int64_t kFirst = 4096, kAll = 1'048'576;
  TextConfig config = TinyConfig();
  config.layers.assign(4, LayerKind::kLightning);
  config.num_heads = config.num_kv_heads = 4;
  const TempFolder folder;
  WriteTinyModel(folder.path(), config);
  const auto engine = infer::Engine::Load(folder.path(), {.context_tokens = kAll});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  EXPECT_EQ((*engine)->plan().kv, 0);

  const std::vector<int32_t> ids = TinyTokens(kAll);
  infer::Session session = infer::Session::Open(**engine).value();
  ASSERT_TRUE(session.Read(std::span(ids).first(kFirst)).ok());
  const int64_t first = infer::PeakResidentBytes();
  ASSERT_TRUE(session.Read(std::span(ids).subspan(kFirst)).ok());
  EXPECT_EQ(session.length(), kAll);
  EXPECT_LT(infer::PeakResidentBytes() - first, int64_t{64} << 20);
  for (const float logit : session.logits()) EXPECT_TRUE(std::isfinite(logit));
}

}  // namespace
}  // namespace mm01
