#include "train/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/rng.h"
#include "comm/thread_group.h"
#include "io/file.h"
#include "testing/temp_folder.h"

namespace mm01::train {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kElements = 1000;

// What element i of the tensor is after a step.
float Value(int64_t step, int64_t i) {
  return static_cast<float>(
      RandomUniform(3, static_cast<uint64_t>(step), static_cast<uint64_t>(i)));
}

Status SaveStep(const std::string& folder, int64_t step, int num_ranks,
                const CheckpointKeep& keep = {}) {
  std::vector<Status> statuses(static_cast<size_t>(num_ranks));
  ThreadRanks(num_ranks).Run([&](int rank, Group& group) {
    Queue queue(1);
    const int64_t begin = kElements * rank / num_ranks, end = kElements * (rank + 1) / num_ranks;
    std::vector<float> mine;
    for (int64_t i = begin; i < end; ++i) mine.push_back(Value(step, i));
    const TensorRange range{.name = "value/a",
                            .begin = begin,
                            .size = kElements,
                            .data = Tensor(mine.data(), {end - begin})};
    statuses[static_cast<size_t>(rank)] =
        WriteCheckpoint(queue, group, folder, step, {{"step", step}}, {&range, 1}, keep);
  });
  for (const Status& status : statuses) MM01_RETURN_IF_ERROR(status);
  return Status::Ok();
}

void ExpectStep(const std::string& folder, int64_t step) {
  const SavedCheckpoint saved = SavedCheckpoint::Open(folder, step).value();
  EXPECT_EQ(saved.state().at("step"), step);
  std::vector<float> all(kElements);
  ASSERT_TRUE(saved.Read("value/a", kElements, 0, all).ok());
  for (int64_t i = 0; i < kElements; ++i) ASSERT_EQ(all[static_cast<size_t>(i)], Value(step, i));
  std::vector<float> part(300);
  ASSERT_TRUE(saved.Read("value/a", kElements, 400, part).ok());
  for (int64_t i = 0; i < 300; ++i) ASSERT_EQ(part[static_cast<size_t>(i)], Value(step, 400 + i));
}

TEST(Checkpoints, AreReadByAnyNumberOfRanks) {
  const TempFolder folder;
  for (const int ranks : {1, 2, 3, 4}) {
    ASSERT_TRUE(SaveStep(folder.path(), ranks, ranks, {.last = 9}).ok());
    ExpectStep(folder.path(), ranks);
  }
  EXPECT_EQ(FindNewest(folder.path()).step, 4);
  const SavedCheckpoint saved = SavedCheckpoint::Open(folder.path(), 4).value();
  std::vector<float> out(5);
  EXPECT_EQ(saved.Read("value/b", 5, 0, out).code(), Code::kNotFound);
  EXPECT_EQ(saved.Read("value/a", 5, 0, out).code(), Code::kInvalid);
}

TEST(Checkpoints, TheLastAndThoseForGoodAreKept) {
  const TempFolder folder;
  for (int64_t step = 1; step <= 12; ++step) {
    ASSERT_TRUE(SaveStep(folder.path(), step, 1, {.last = 2, .every = 5}).ok());
  }
  EXPECT_EQ(ListCheckpoints(folder.path()), (std::vector<int64_t>{12, 11, 10, 5}));
}

TEST(Checkpoints, AStepMayBeSavedAgain) {
  const TempFolder folder;
  ASSERT_TRUE(SaveStep(folder.path(), 3, 4, {.last = 1}).ok());
  ASSERT_TRUE(SaveStep(folder.path(), 3, 1, {.last = 1}).ok());
  ExpectStep(folder.path(), 3);
  EXPECT_FALSE(fs::exists(folder / "step-00000003.tmp"));
  EXPECT_FALSE(fs::exists(folder / "step-00000003/rank-00001.json"));
}

TEST(Checkpoints, OfWhichOneIsDamagedTheOneBeforeServes) {
  const TempFolder folder;
  ASSERT_TRUE(SaveStep(folder.path(), 1, 2).ok());
  ASSERT_TRUE(SaveStep(folder.path(), 2, 2).ok());
  int64_t flips = 0;
  for (const auto& entry : fs::directory_iterator(folder / "step-00000002")) {
    const std::string path = entry.path().string();
    const std::string good = ReadFile(path, 1 << 24).value();
    for (uint64_t n = 0; n < 60; ++n) {
      const auto bit =
          static_cast<size_t>(RandomBits(9, static_cast<uint64_t>(flips), n) % (8 * good.size()));
      std::string bad = good;
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ 1 << bit % 8);
      std::ofstream(path, std::ios::binary) << bad;
      const Newest newest = FindNewest(folder.path());
      ASSERT_EQ(newest.step, 1) << path << " bit " << bit;
      ASSERT_EQ(newest.notes.size(), 1u);
      EXPECT_EQ(newest.notes[0].find('\n'), std::string::npos);
      ++flips;
    }
    std::ofstream(path, std::ios::binary) << good;
  }
  EXPECT_EQ(flips, 6 * 60);
  EXPECT_EQ(FindNewest(folder.path()).step, 2);
  fs::remove(folder / "step-00000002/DONE");
  EXPECT_EQ(FindNewest(folder.path()).step, 1);
}

TEST(Checkpoints, AFolderThatCannotBeWrittenIsAnErrorOfAllRanks) {
  const TempFolder folder;
  std::ofstream(folder / "file") << "x";
  EXPECT_EQ(SaveStep(folder / "file", 1, 3).code(), Code::kIo);
}

// A child saves step after step and says so of each; after the first it is killed at any moment.
// Whatever is newest then must be whole, and not older than what it said.
TEST(CheckpointsSlow, AHundredKillsLoseNothing) {
  const TempFolder folder;
  int64_t step = 0;
  for (uint64_t kill = 0; kill < 100; ++kill) {
    int pipe[2];
    ASSERT_EQ(::pipe(pipe), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int64_t next = step + 1;; ++next) {
        if (!SaveStep(folder.path(), next, 1).ok()) ::_exit(1);
        if (::write(pipe[1], &next, sizeof(next)) != sizeof(next)) ::_exit(1);
      }
    }
    ::close(pipe[1]);
    int64_t said = 0;
    ASSERT_EQ(::read(pipe[0], &said, sizeof(said)), static_cast<ssize_t>(sizeof(said)));
    ::usleep(static_cast<useconds_t>(RandomBits(1, 2, kill) % 40000));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child could not save";
    while (::read(pipe[0], &said, sizeof(said)) > 0) {
    }
    ::close(pipe[0]);
    const Newest newest = FindNewest(folder.path());
    ASSERT_GE(newest.step, said) << "kill " << kill;
    step = newest.step;
    ExpectStep(folder.path(), step);
  }
  EXPECT_GE(step, 100);
}

}  // namespace
}  // namespace mm01::train
