#include "train/data/documents.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "testing/temp_folder.h"

namespace mm01::train {
namespace {

class Documents : public testing::Test {
 protected:
  std::vector<Document> Read(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    std::vector<Document> all;
    status_ = ReadDocuments(folder_ / name, [&](Document d) {
      all.push_back(std::move(d));
      return Status::Ok();
    });
    return all;
  }

  TempFolder folder_;
  Status status_;
};

TEST_F(Documents, NulBytesPartThem) {
  const auto all = Read("a.txt", std::string("one\n\0\0two\0three", 15));
  ASSERT_TRUE(status_.ok());
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].text, "one\n");
  EXPECT_EQ(all[1].text, "two");
  EXPECT_EQ(all[2].text, "three");
}

TEST_F(Documents, LinesOfJsonAreTextsOrChats) {
  const auto all = Read("a.jsonl",
                        "{\"text\": \"one\\u0000\"}\r\n\n"
                        "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}");
  ASSERT_TRUE(status_.ok()) << status_.message();
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].text, std::string("one\0", 4));
  EXPECT_EQ(all[1].messages[0]["content"], "hi");
}

TEST_F(Documents, ABadLineIsNamed) {
  for (const char* bad : {"{\"text\": 1}", "[1]", "nonsense", "{\"messages\": {}}"}) {
    Read("a.jsonl", std::string("{\"text\": \"one\"}\n") + bad + "\n");
    ASSERT_FALSE(status_.ok()) << bad;
    EXPECT_NE(status_.message().find("a.jsonl:2"), std::string::npos) << status_.message();
  }
}

TEST_F(Documents, LongDocumentsMayCrossEveryBuffer) {
  const std::string longer(3 << 20, 'x');
  const auto all = Read("a.txt", longer + std::string(1, '\0') + "y");
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].text, longer);
}

}  // namespace
}  // namespace mm01::train
