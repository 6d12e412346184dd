// Every path that the documents name exists: dead names are found before a reader finds them.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

const fs::path kRoot = MM01_SOURCE_DIR;

std::string ReadText(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<fs::path> Documents() {
  std::vector<fs::path> documents;
  for (const char* name : {"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"}) {
    if (fs::exists(kRoot / name)) documents.push_back(kRoot / name);
  }
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(kRoot / "docs")) {
    if (entry.path().extension() == ".md") documents.push_back(entry.path());
  }
  return documents;
}

bool NamesAPath(const std::string& word) {
  static const std::regex kPath(R"((src|tests|docs|tools|models|data|fuzz|cmake|\.ci|\.)/.*)");
  return std::regex_match(word, kPath);
}

// The part that must exist: up to the last folder before a pattern (src/*/x.h, docs/NNNN-*.md),
// without the line number or the full stop that may follow.
std::string FixedPart(std::string word) {
  const size_t pattern = std::min(word.find_first_of("*{<["), word.find("NNNN"));
  if (pattern != std::string::npos) return word.substr(0, word.rfind('/', pattern));
  word = std::regex_replace(word, std::regex(R"((:[0-9]+)?[.,:;)]*$)"), "");
  return word;
}

// The insides of `code spans` and ``` code blocks.
std::vector<std::string> CodeParts(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = text.find('`'); begin != std::string::npos; begin = text.find('`', begin)) {
    const std::string mark = text.compare(begin, 3, "```") == 0 ? "```" : "`";
    begin += mark.size();
    const size_t end = text.find(mark, begin);
    if (end == std::string::npos) break;
    parts.push_back(text.substr(begin, end - begin));
    begin = end + mark.size();
  }
  return parts;
}

// Paths in code, counted from the root of the repository.
std::set<std::string> PathsInCode(const std::string& text) {
  static const std::regex kWord(R"re([^\s"'(]+)re");
  std::set<std::string> paths;
  for (const std::string& code : CodeParts(text)) {
    for (std::sregex_iterator word(code.begin(), code.end(), kWord), end; word != end; ++word) {
      if (NamesAPath(word->str())) paths.insert(FixedPart(word->str()));
    }
  }
  return paths;
}

// Targets of [links](target) inside the repository, counted from the document's folder.
std::set<std::string> LinkTargets(const std::string& text) {
  static const std::regex kLink(R"(\]\(([^)#\s]+)[^)]*\))");
  std::set<std::string> targets;
  for (std::sregex_iterator it(text.begin(), text.end(), kLink), end; it != end; ++it) {
    const std::string target = (*it)[1];
    if (target.find(':') == std::string::npos) targets.insert(target);
  }
  return targets;
}

TEST(DocsPaths, EveryPathInCodeExists) {
  for (const fs::path& document : Documents()) {
    for (const std::string& path : PathsInCode(ReadText(document))) {
      EXPECT_TRUE(fs::exists(kRoot / path)) << document.lexically_relative(kRoot) << ": " << path;
    }
  }
}

TEST(DocsPaths, EveryLinkLeadsToAFile) {
  for (const fs::path& document : Documents()) {
    for (const std::string& target : LinkTargets(ReadText(document))) {
      EXPECT_TRUE(fs::exists(document.parent_path() / target))
          << document.lexically_relative(kRoot) << ": " << target;
    }
  }
}

TEST(DocsPaths, WordsThatNameAPathAreFound) {
  const std::string text =
      "See `src/base/json.h:12`, `./demo --no-install` and `tests/*_test.cc`; src/not/code.h is\n"
      "prose and `build/release/mm01 inspect models/x.` reads a model.\n```\ndata/a.txt\n```\n";
  EXPECT_EQ(PathsInCode(text), (std::set<std::string>{"src/base/json.h", "./demo", "tests",
                                                      "models/x", "data/a.txt"}));
}

TEST(DocsPaths, LinksOutOfTheRepositoryAreLeftAlone) {
  const std::string text = "[a](docs/a.md#part) [b](https://example.org/x) [c](#here) [d](../d.md)";
  EXPECT_EQ(LinkTargets(text), (std::set<std::string>{"docs/a.md", "../d.md"}));
}

}  // namespace
