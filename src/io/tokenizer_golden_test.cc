// The ids of models/nano's tokenizer, as the reference library gives them.
#include <gtest/gtest.h>

#include <fstream>

#include "base/json.h"
#include "io/detokenizer.h"
#include "io/tokenizer.h"

namespace mm01 {
namespace {

TEST(TokenizerGolden, EveryStringHasTheIdsOfTheReference) {
  const std::string root = MM01_SOURCE_DIR;
  const auto tokenizer = Tokenizer::Load(root + "/models/nano");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  std::ifstream goldens(root + "/tests/goldens/tokenizer.jsonl");
  std::string line;
  std::getline(goldens, line);  // the command that made the file
  int count = 0;
  while (std::getline(goldens, line)) {
    const Json golden = Json::parse(line);
    const auto text = golden["text"].get<std::string>();
    const auto want = golden["ids"].get<std::vector<int32_t>>();
    const auto mode =
        golden.value("special", true) ? Tokenizer::Special::kParse : Tokenizer::Special::kAsText;
    const auto ids = tokenizer->Encode(text, mode);
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    ASSERT_EQ(*ids, want) << line;
    ASSERT_EQ(tokenizer->Decode(want), text);
    StreamingDetokenizer stream(*tokenizer);
    std::string streamed;
    for (const int32_t id : want) streamed += stream.Push(id);
    ASSERT_EQ(streamed + stream.Finish(), text);
    ++count;
  }
  EXPECT_GE(count, 1500);
}

}  // namespace
}  // namespace mm01
