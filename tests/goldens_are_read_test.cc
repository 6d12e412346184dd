// A golden that no test reads proves nothing and still costs every clone its bytes.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace {

namespace fs = std::filesystem;

const fs::path kRoot = MM01_SOURCE_DIR;

bool IsATestOrScript(const fs::path& path) {
  const std::string name = path.filename();
  if (name == "goldens_are_read_test.cc") return false;
  return name.ends_with("_test.cc") || name.ends_with(".sh") || name.ends_with(".py");
}

// All tests and scripts of src/ and tests/, one after the other.
std::string AllTests() {
  std::string all;
  for (const char* folder : {"src", "tests"}) {
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(kRoot / folder)) {
      if (!entry.is_regular_file() || !IsATestOrScript(entry.path())) continue;
      std::ifstream file(entry.path(), std::ios::binary);
      all.append(std::istreambuf_iterator<char>(file), {});
    }
  }
  return all;
}

// As a string of its own ("text-tiny") or as a part of a path ("tests/goldens/text-tiny/...").
bool Names(const std::string& text, const std::string& golden) {
  return text.find("goldens/" + golden) != std::string::npos ||
         text.find('"' + golden + '"') != std::string::npos ||
         text.find('"' + golden + '/') != std::string::npos;
}

TEST(Goldens, EveryOneIsNamedInATest) {
  const std::string tests = AllTests();
  for (const fs::directory_entry& entry : fs::directory_iterator(kRoot / "tests" / "goldens")) {
    const std::string golden = entry.path().filename();
    EXPECT_TRUE(Names(tests, golden)) << "no test reads tests/goldens/" << golden;
  }
}

TEST(Goldens, ANameCountsOnlyAsAPath) {
  EXPECT_TRUE(Names(R"(Load("tests/goldens/vectors.json"))", "vectors.json"));
  EXPECT_TRUE(Names(R"(Golden("vectors.json"))", "vectors.json"));
  EXPECT_FALSE(Names("// vectors.json is not read here", "vectors.json"));
}

}  // namespace
