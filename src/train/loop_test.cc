#include "train/loop.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/json.h"
#include "comm/thread_group.h"
#include "io/checkpoint.h"
#include "testing/bigram_trainer.h"
#include "testing/tiny_training.h"
#include "train/chart.h"
#include "train/checkpoint.h"
#include "train/report.h"

namespace mm01::train {
namespace {

namespace fs = std::filesystem;

class Loops : public testing::Test {
 protected:
  Loops() { fs::create_directories(run()); }
  std::string run() const { return tiny_ / "run"; }

  struct Options {
    int ranks = 1;
    int64_t stop_after = 0;  // 0: at the end
    bool resume = false;
    bool overfit = false;
    BigramTrainer::OnPass on_pass;
  };

  LoopEnd Run(const Options& options) {
    std::string text = tiny_.RecipeText();
    text.replace(text.find("steps = 200"), 11, "steps = 60");
    const Recipe recipe = ParseRecipe(text +
                                          "[sample]\nevery = 20\nprompt = \"the\"\n"
                                          "[checkpoint]\nevery = 20\nkeep_every = 40\n",
                                      "loop.toml")
                              .value();
    EXPECT_TRUE(WriteFileAtomically(run() + "/recipe.toml", recipe.text).ok());
    const auto data = TrainData::Load(recipe).value();
    LoopEnd end = LoopEnd::kDone;
    ThreadRanks(options.ranks).Run([&](int rank, Group& group) {
      Queue queue(1);
      const TrainerPlace place{.queue = queue,
                               .group = group,
                               .make_model =
                                   [&](Queue&, const TextConfig& config, const TrainOptions&) {
                                     return Result<std::unique_ptr<TrainerModel>>(
                                         std::make_unique<BigramTrainer>(config, options.on_pass));
                                   },
                               .checkpoints = run() + "/checkpoints",
                               .overfit = options.overfit};
      const auto trainer = Trainer::Create(recipe, data, place).value();
      std::vector<std::string> refused;
      if (options.resume) {
        EXPECT_TRUE(trainer->Resume(&refused).value());
      }
      const LoopHooks hooks{
          .on_step = [&](const StepMetrics& m) { return m.report.step + 1 != options.stop_after; },
          .on_note = [&](const std::string& note) { notes_.push_back(note); },
          .sample =
              [&](const std::string& folder) {
                EXPECT_TRUE(Checkpoint::Open(folder).ok());
                return Result<SampleReport>({.text = "the <b>cat</b>", .needles = {{64, 0.5}}});
              }};
      const auto mine =
          RunLoop(recipe, *trainer, group, {.run = run(), .overfit = options.overfit}, hooks);
      EXPECT_TRUE(mine.ok()) << mine.status().message();
      if (rank == 0) end = mine.value();
    });
    return end;
  }

  std::vector<Json> Lines() const {
    std::vector<Json> lines;
    const std::string text = ReadFile(run() + "/metrics.jsonl", 1 << 24).value();
    for (size_t begin = 0; begin < text.size(); begin = text.find('\n', begin) + 1) {
      lines.push_back(Json::parse(text.substr(begin, text.find('\n', begin) - begin)));
    }
    return lines;
  }

  TinyTraining tiny_;
  std::vector<std::string> notes_;
};

TEST_F(Loops, KeepWhatARunIs) {
  EXPECT_EQ(Run({.ranks = 2}), LoopEnd::kDone);
  int steps = 0, validations = 0, samples = 0;
  for (const Json& line : Lines()) {
    if (line.contains("loss")) {
      EXPECT_EQ(line["step"], steps++);
    }
    validations += line.contains("validation");
    samples += line.contains("sample");
  }
  EXPECT_EQ(steps, 60);
  EXPECT_EQ(validations, 2);  // every 50 steps, and at the end
  EXPECT_EQ(samples, 3);
  EXPECT_EQ(ListCheckpoints(run() + "/checkpoints"), (std::vector<int64_t>{60, 40}));
  EXPECT_TRUE(fs::exists(run() + "/model/config.json"));
  EXPECT_TRUE(fs::exists(run() + "/model/tokenizer.json"));
}

TEST_F(Loops, AStoppedRunGoesOnWithoutATrace) {
  EXPECT_EQ(Run({}), LoopEnd::kDone);
  std::vector<Json> straight = Lines();
  fs::remove_all(run());
  fs::create_directories(run());
  EXPECT_EQ(Run({.stop_after = 27}), LoopEnd::kStopped);
  EXPECT_EQ(ListCheckpoints(run() + "/checkpoints").front(), 27);
  EXPECT_EQ(Run({.resume = true}), LoopEnd::kDone);
  std::vector<double> a, b;
  for (const Json& line : straight) {
    if (line.contains("loss")) a.push_back(line["loss"]);
  }
  for (const Json& line : Lines()) {
    if (line.contains("loss")) b.push_back(line["loss"]);
  }
  EXPECT_EQ(a, b);
}

// Killed after step 30, the last checkpoint is that of step 20: its lines are taken anew.
TEST_F(Loops, StepsThatAreTakenAnewHaveOneLine) {
  Run({.stop_after = 30});
  fs::remove_all(run() + "/checkpoints/step-00000030");
  Run({.resume = true});
  std::set<int64_t> steps;
  for (const Json& line : Lines()) {
    if (line.contains("loss")) {
      EXPECT_TRUE(steps.insert(line["step"].get<int64_t>()).second);
    }
  }
  EXPECT_EQ(steps.size(), 60u);
}

TEST_F(Loops, SkippedStepsAreExplained) {
  Run({.on_pass = [](int64_t pass, BigramTrainer& model) {
    if (pass / 4 == 9) BigramTrainer::Floats(model.parameters()[0].gradient)[3] = NAN;
  }});
  int skipped = 0;
  for (const Json& line : Lines()) {
    if (!line.contains("skip_reason")) continue;
    ++skipped;
    EXPECT_EQ(line["step"], 9);
    EXPECT_EQ(line["skip_reason"], "the gradient norm is nan");
    EXPECT_EQ(line["skip_rows"].size(), 4u);
    EXPECT_TRUE(line["gradient_norm"].is_null());
  }
  EXPECT_EQ(skipped, 1);
}

TEST_F(Loops, OverfittingSavesNothing) {
  Run({.overfit = true});
  EXPECT_FALSE(fs::exists(run() + "/checkpoints"));
  EXPECT_FALSE(fs::exists(run() + "/model"));
}

TEST_F(Loops, ACheckpointThatCannotBeWrittenStopsNothing) {
  std::ofstream(run() + "/checkpoints") << "a file in its place";
  EXPECT_EQ(Run({}), LoopEnd::kDone);
  int failed = 0;
  for (const std::string& note : notes_) failed += note.starts_with("the checkpoint was not saved");
  EXPECT_EQ(failed, 3);
}

TEST_F(Loops, TheReportIsOnePage) {
  Run({});
  const std::string html = MakeReport(run()).value();
  EXPECT_TRUE(html.starts_with("<!doctype html>"));
  for (const char* part : {"<h1>run</h1>", "Gradient norm", "Balance of the experts", "layer 1",
                           "validation at 256", "the &lt;b&gt;cat&lt;/b&gt;", "Needles found"}) {
    EXPECT_NE(html.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(html.find("nan"), std::string::npos);
  EXPECT_EQ(html.find("http"), std::string::npos);
  EXPECT_LT(html.size(), 300'000u);
  std::ofstream(run() + "/metrics.jsonl", std::ios::app) << "{\"step\": 60, \"lo";
  EXPECT_TRUE(MakeReport(run()).ok());  // a line that is being written
  EXPECT_EQ(MakeReport(tiny_ / "nowhere").status().code(), Code::kNotFound);
}

TEST(Charts, ValuesThatDifferByRoundingAreOneLine) {
  for (const double value : {0.0, 2.0, -1e9}) {
    for (const bool log : {false, true}) {
      const LineChart chart{
          .title = "flat",
          .curves = {{.name = "c", .points = {{0, value}, {1, std::nextafter(value, 10)}}}},
          .log_y = log};
      EXPECT_LT(ToSvg(chart).size(), 5000u);
    }
  }
  EXPECT_EQ(ToSvg(LineChart{}), "");
}

TEST(StepLines, SayEverythingOnOne) {
  const StepMetrics m{.report = {.step = 11,
                                 .loss = 5.12341,
                                 .gradient_norm = 1.0249,
                                 .learning_rate = 1e-3,
                                 .verdict = {.loss_z = -0.31, .norm_z = 0.1},
                                 .skipped = 2,
                                 .expert_rows = {{30, 10}},
                                 .seconds = 0.25},
                      .total_steps = 200,
                      .tokens_per_second = 4096,
                      .mfu = 0.123,
                      .memory_bytes = 3 << 20,
                      .seconds_left = 65};
  EXPECT_EQ(ToLine(m),
            " 12/200  loss 5.1234 (z -0.3)  norm 1.02 (z +0.1)  lr 1.00e-03  4096 tokens/s  MFU "
            "12.3 %  250 ms  experts 0.50-1.50  3.00 MiB  skipped 2  1 min 05 s left");
}

}  // namespace
}  // namespace mm01::train
