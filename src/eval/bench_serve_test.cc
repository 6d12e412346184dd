#include "eval/bench_serve.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "testing/tiny_model.h"

namespace mm01::eval {
namespace {

TEST(BenchServeSlow, CountsTheWorkThatReuseLeavesAndGoesOnAfterARestart) {
  const TempFolder model, snapshots;
  WriteTinyModel(model.path(), TinyConfig());
  std::vector<std::string> names;
  const auto lines = BenchServe({.model = model.path(),
                                 .folder = snapshots.path(),
                                 .num_threads = 1,
                                 .document_tokens = 8192 + 1000,
                                 .num_streams = 3,
                                 .stream_tokens = 8},
                                [&](const BenchLine& line) { names.push_back(line.name); });
  ASSERT_TRUE(lines.ok()) << lines.status().message();
  EXPECT_EQ(std::ssize(names), std::ssize(*lines));
  const auto find = [&](const std::string& name) {
    for (const BenchLine& line : *lines) {
      if (line.name == name) return line;
    }
    ADD_FAILURE() << "no line " << name;
    return BenchLine();
  };
  const BenchLine edit = find("serve edit at 75 %, work"),
                  cut = find("serve cut at 60 %, work of both");
  EXPECT_LE(edit.value, edit.ceiling);
  EXPECT_GT(edit.value, 25);
  EXPECT_LE(cut.value, cut.ceiling);
  EXPECT_GT(find("serve restart, seconds").value, 0);
  EXPECT_GT(find("serve 3 streams, greedy").value, 0);
  EXPECT_EQ(BenchServe({.model = "nowhere", .folder = snapshots.path()}, {}).status().code(),
            Code::kNotFound);
}

}  // namespace
}  // namespace mm01::eval
