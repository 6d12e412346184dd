#include "train/tensorboard.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "io/file.h"
#include "testing/temp_folder.h"

namespace mm01::train {
namespace {

TEST(EventFiles, CrcIsThatOfThePublishedVectors) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

// By hand from the format: step 3, one scalar "a" of 1.0 at time 2.
TEST(EventFiles, AreRecordsOfEvents) {
  const TempFolder folder;
  EventWriter writer = EventWriter::Create(folder.path(), 1.0, 0).value();
  const std::vector<std::pair<std::string, double>> scalars = {{"a", 1.0}};
  ASSERT_TRUE(writer.Add(2.0, 3, scalars).ok());
  std::string path;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) path = entry.path();
  EXPECT_NE(path.find("events.out.tfevents.1."), std::string::npos);
  const std::string bytes = ReadFile(path, 1 << 20).value();
  const std::string first(
      "\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22\x09\0\0\0\0\0\0\xf0\x3f\x1a\x0d"
      "brain.Event:2",
      36);
  EXPECT_EQ(bytes.substr(0, first.size()), first);
  const std::string event(
      "\x09\0\0\0\0\0\0\0\x40\x10\x03\x2a\x0a\x0a\x08\x0a\x01\x61\x15\0\0\x80\x3f", 23);
  const std::string last = bytes.substr(bytes.size() - 4 - event.size(), event.size());
  EXPECT_EQ(last, event);
}

}  // namespace
}  // namespace mm01::train
