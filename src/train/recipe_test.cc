#include "train/recipe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "testing/tiny_training.h"

namespace mm01::train {
namespace {

TEST(Recipes, AreRead) {
  const TinyTraining tiny;
  const Recipe r = tiny.Recipe("peak_tflops = 2.5", "rope_theta = 5e6");
  EXPECT_EQ(r.name, "tiny");
  EXPECT_EQ(r.seed, 7u);
  EXPECT_EQ(r.peak_tflops, 2.5);
  EXPECT_EQ(r.config.num_layers(), 2);
  EXPECT_EQ(r.config.num_kv_heads, 2);
  EXPECT_DOUBLE_EQ(r.config.mlp_residual.alpha, std::sqrt(2.0));  // (2 * 2)^(1/4)
  EXPECT_EQ(r.model.max_tokens, 256);
  EXPECT_EQ(r.tasks[0].length.min, 230);
  EXPECT_EQ(r.tasks[0].loss, TaskLoss::kAnswers);
  EXPECT_EQ(r.stages[0].rope_theta, 5e6);
  ASSERT_EQ(r.stages[0].mix.size(), 2u);
  EXPECT_EQ(r.stages[0].mix[0].name, "needles");
  EXPECT_EQ(r.stages[0].mix[0].begin, 0.25);
  EXPECT_EQ(r.total_steps(), 200);
  EXPECT_EQ(r.total_tokens(), 200 * 1024);
}

TEST(Recipes, StagesFollowEachOther) {
  const TinyTraining tiny;
  std::string text = tiny.RecipeText();
  const std::string second =
      "[[stage]]\nsteps = 100\nlength = 128\nbatch_tokens = [[0, 256], [40, 512]]\n"
      "mix = { text = [1, 0.5], needles = [0, 0.5] }\n";
  text.replace(text.find("length = [230, 256]"), 19, "length = [100, 128]");
  const Recipe r = ParseRecipe(text + second, "two.toml").value();
  EXPECT_EQ(r.total_steps(), 300);
  EXPECT_EQ(r.total_tokens(), 200 * 1024 + 40 * 256 + 60 * 512);
  EXPECT_EQ(r.At(199).stage, 0);
  EXPECT_EQ(r.At(200).stage, 1);
  EXPECT_EQ(r.At(245).step_of_stage, 45);
  EXPECT_EQ(r.stages[1].BatchTokens(39), 256);
  EXPECT_EQ(r.stages[1].BatchTokens(40), 512);
  EXPECT_EQ(r.stages[1].mix[0].end, 0.5);
}

struct BadRecipe {
  const char* find;
  const char* replace;
  const char* sentence;  // a part of it
};

TEST(Recipes, ErrorsAreOneSentenceWithTheLine) {
  const TinyTraining tiny;
  const BadRecipe cases[] = {
      {"seed = 7", "seed = -7", "bad.toml:2: seed is -7, wanted a whole number from 0"},
      {"seed = 7", "seed = 'x'", "bad.toml:2: seed is 'x', wanted a whole number"},
      {"seed = 7", "sed = 7", "bad.toml:2: sed is no field, wanted one of "},
      {"seed = 7", "seed = ", "bad.toml:2: "},
      {"name = \"tiny\"", "", "name is missing"},
      {"pass_tokens = 256", "pass_tokens = 128", "pass_tokens is 128, wanted at least the longest"},
      {"layers = 2", "layers = 2\nhidden_size = 3", "bad.toml:10: model.hidden_size is no field"},
      {"heads = 2", "heads = 2\nkeep = 'norm'", "wanted one of products, norms, all"},
      {"heads = 2", "heads = 3\nkv_heads = 2", "num_key_value_heads is 2, wanted a divisor of 3"},
      {"learning_rate = 0.01", "learning_rate = 100", "schedule.learning_rate is 100, wanted"},
      {"warmup_steps = 5", "warmup_steps = 500", "schedule: 500 steps of warm-up and 50 of decay"},
      {"name = \"needles\"", "name = \"text\"", "two sources or tasks are named 'text'"},
      {"haystack = \"text\"", "haystack = \"txt\"",
       "task.haystack names 'txt', wanted one of text"},
      {"haystack = \"text\"", "", "task.haystack of 'needles' is missing"},
      {"length = [230, 256]", "length = [256, 230]", "task.length is an array, wanted an array of"},
      {"length = [230, 256]", "length = [300, 400]", "has samples of 300 tokens or more"},
      {"steps = 200", "steps = 0", "stage.steps is 0, wanted a whole number from 1"},
      {"batch_tokens = 1024", "batch_tokens = 1000", "wanted a multiple of length, 256"},
      {"batch_tokens = 1024", "batch_tokens = [[5, 1024]]", "wanted steps that begin at 0"},
      {"steps = 200\nlength = 256\nbatch_tokens = 1024",
       "steps = 281474976710655\nlength = 256\nbatch_tokens = 1048576",
       "the stages have 3e+20 tokens, wanted at most 1e18"},
      {"batch_tokens = 1024", "", "stage.batch_tokens is missing"},
      {"batch_tokens = 1024", "batch_tokens = []", "stage.batch_tokens is empty"},
      {"length = 256\nbatch", "batch", "stage.length is missing"},
      {"text = 3, needles = 1", "text = 3, needle = 1", "stage.mix names 'needle'"},
      {"text = 3, needles = 1", "", "stage.mix has no share above 0"},
      {"source = \"text\"", "source = \"val\"", "validation.source names 'val'"},
      {"[[stage]]", "[stage]", "stage is a table, wanted tables, each under [[stage]]"},
      {"[model]", "[modle]", "[model] is missing"},
  };
  for (const BadRecipe& c : cases) {
    SCOPED_TRACE(c.replace);
    std::string text = tiny.RecipeText();
    text.replace(text.find(c.find), std::string(c.find).size(), c.replace);
    const auto recipe = ParseRecipe(text, "bad.toml");
    ASSERT_FALSE(recipe.ok());
    const std::string& message = recipe.status().message();
    EXPECT_NE(message.find(c.sentence), std::string::npos) << message;
    EXPECT_TRUE(message.starts_with("bad.toml:")) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

TEST(LearningRates, RiseStayAndFall) {
  ScheduleSpec s{.learning_rate = 2, .warmup_steps = 4, .decay_steps = 10, .final_share = 0.1};
  EXPECT_EQ(LearningRate(s, 0, 100), 0.5);
  EXPECT_EQ(LearningRate(s, 3, 100), 2);
  EXPECT_EQ(LearningRate(s, 89, 100), 2);
  EXPECT_NEAR(LearningRate(s, 94, 100), 2 * (1 - 0.9 * 0.5), 1e-12);
  EXPECT_NEAR(LearningRate(s, 99, 100), 0.2, 1e-12);
  s.decay = Decay::kCosine;
  EXPECT_NEAR(LearningRate(s, 94, 100), 2 * 0.55, 1e-12);
  EXPECT_NEAR(LearningRate(s, 99, 100), 0.2, 1e-12);
  s.decay = Decay::kExponential;
  EXPECT_NEAR(LearningRate(s, 94, 100), 2 * std::sqrt(0.1), 1e-12);
  EXPECT_NEAR(LearningRate(s, 99, 100), 0.2, 1e-12);
}

}  // namespace
}  // namespace mm01::train
