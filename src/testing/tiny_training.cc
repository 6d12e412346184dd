#include "testing/tiny_training.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <fstream>
#include <utility>

#include "base/check.h"
#include "base/json.h"
#include "io/file.h"
#include "io/tokenizer.h"
#include "testing/tiny_model.h"
#include "train/data/shard.h"
#include "train/digest.h"

namespace mm01 {

TinyTraining::TinyTraining() {
  WriteTinyTokenizer(folder_.path());
  const std::string path = folder_ / "tokenizer.json";
  const Tokenizer tokenizer = Tokenizer::Load(path).value();
  train::DataSetInfo info{.source = "a test",
                          .tokenizer_digest = train::DigestOf(ReadFile(path, 1 << 20).value()),
                          .vocab_size = tokenizer.size()};
  auto writer = train::DataSetWriter::Create(folder_ / "text", info, 3000).value();
  for (int d = 0; d < 40; ++d) {
    train::TokenSpan span;
    span.ids = tokenizer.Encode(Text(d), Tokenizer::Special::kAsText).value();
    span.ids.push_back(257);
    span.counted.assign(span.ids.size(), 1);
    Check(writer.Add(span).ok(), "a document");
  }
  Check(writer.Finish().ok(), "a data set");
  Json words = Json::array();
  for (int i = 0; i < 200; ++i) words.push_back(fmt::format("word{}", i));
  std::ofstream(folder_ / "words.json") << JsonText(words);
}

std::string TinyTraining::Text(int d) {
  std::string text = fmt::format("Document {}. ", d);
  for (int i = 0; i < 1 + d * 5 % 40; ++i) text += "the cat ";
  return text;
}

std::string TinyTraining::RecipeText(const std::string& more, const std::string& stage) const {
  return fmt::format(R"(name = "tiny"
seed = 7
tokenizer = "{0}"
words = "{0}/words.json"
pass_tokens = 256
{1}

[model]
layers = 2
vocab = 258
hidden = 32
heads = 2
head_dim = 16
ffn = 32
experts = 4

[schedule]
learning_rate = 0.01
warmup_steps = 5
decay_steps = 50

[[source]]
name = "text"
data = "{0}/text"

[[task]]
name = "needles"
haystack = "text"
length = [230, 256]
keys = [1, 2]
questions = [1, 2]

[[stage]]
steps = 200
length = 256
batch_tokens = 1024
mix = {{ text = 3, needles = 1 }}
{2}

[validation]
source = "text"
every = 50
tokens = 2048
)",
                     folder_.path(), more, stage);
}

train::Recipe TinyTraining::Recipe(const std::string& more, const std::string& stage) const {
  auto recipe = train::ParseRecipe(RecipeText(more, stage), "tiny.toml");
  EXPECT_TRUE(recipe.ok()) << recipe.status().message();
  return std::move(recipe).value();
}

}  // namespace mm01
