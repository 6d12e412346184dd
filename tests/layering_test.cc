// Includes point one way: src/layers.txt says which folder may include which.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

const fs::path kSource = fs::path(MM01_SOURCE_DIR) / "src";

struct Layer {
  std::string folder;
  std::set<std::string> may_include;
};
using Layers = std::vector<Layer>;  // bottom up

std::string ReadText(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

Layers ParseLayers(const std::string& text) {
  Layers layers;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(':');
    if (line.starts_with('#') || colon == std::string::npos) continue;
    Layer layer{.folder = line.substr(0, colon), .may_include = {}};
    std::istringstream words(line.substr(colon + 1));
    for (std::string word; words >> word;) layer.may_include.insert(word);
    layers.push_back(layer);
  }
  return layers;
}

const Layer* Find(const Layers& layers, const std::string& folder) {
  const auto found = std::find_if(layers.begin(), layers.end(),
                                  [&](const Layer& l) { return l.folder == folder; });
  return found == layers.end() ? nullptr : &*found;
}

// What is wrong with `#include "target"` in src/`file`, or nothing.
std::optional<std::string> Objection(const Layers& layers, const std::string& file,
                                     const std::string& target) {
  const std::string from = file.substr(0, file.find('/'));
  const std::string to = target.substr(0, target.find('/'));
  const Layer* layer = Find(layers, from);
  if (layer == nullptr) return "src/" + from + " is not in src/layers.txt";
  if (Find(layers, to) == nullptr) {
    return "\"" + target +
           "\" does not begin with a folder of src/layers.txt "
           "(libraries are included with <>)";
  }
  if (to == from) return std::nullopt;
  if (to == "testing") {
    if (file.ends_with("_test.cc")) return std::nullopt;
    return "src/testing is for *_test.cc files only";
  }
  if (layer->may_include.contains(to)) return std::nullopt;
  return "src/" + from + " may not include src/" + to;
}

std::vector<std::string> QuotedIncludes(const std::string& text) {
  static const std::regex kInclude(R"re((?:^|\n)[ \t]*#[ \t]*include[ \t]*"([^"\n]+)")re");
  std::vector<std::string> targets;
  for (std::sregex_iterator it(text.begin(), text.end(), kInclude), end; it != end; ++it) {
    targets.push_back((*it)[1]);
  }
  return targets;
}

std::vector<std::string> SourceFiles() {
  static const std::set<std::string> kEndings = {".h", ".cc", ".inl", ".inc", ".cu", ".cuh"};
  std::vector<std::string> files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(kSource)) {
    if (entry.is_regular_file() && kEndings.contains(entry.path().extension())) {
      files.push_back(entry.path().lexically_relative(kSource).generic_string());
    }
  }
  return files;
}

TEST(Layering, EveryIncludeFollowsTheTable) {
  const Layers layers = ParseLayers(ReadText(kSource / "layers.txt"));
  for (const std::string& file : SourceFiles()) {
    for (const std::string& target : QuotedIncludes(ReadText(kSource / file))) {
      const std::optional<std::string> objection = Objection(layers, file, target);
      EXPECT_FALSE(objection) << "src/" << file << ": " << *objection;
      EXPECT_TRUE(fs::exists(kSource / target)) << "src/" << file << ": no file src/" << target;
    }
  }
}

TEST(Layering, EveryFolderOfSrcIsInTheTable) {
  const Layers layers = ParseLayers(ReadText(kSource / "layers.txt"));
  for (const fs::directory_entry& entry : fs::directory_iterator(kSource)) {
    if (!entry.is_directory()) continue;
    EXPECT_NE(Find(layers, entry.path().filename()), nullptr) << entry.path();
  }
}

TEST(Layering, AFolderMayIncludeOnlyFoldersAboveItsOwnLine) {
  std::set<std::string> above;
  for (const Layer& layer : ParseLayers(ReadText(kSource / "layers.txt"))) {
    for (const std::string& folder : layer.may_include) {
      EXPECT_TRUE(above.contains(folder)) << layer.folder << " names " << folder << " too early";
    }
    EXPECT_TRUE(above.insert(layer.folder).second) << layer.folder << " has two lines";
  }
}

// So a header with a source of its name is shown to compile alone whenever that source compiles.
TEST(Layering, ASourceIncludesItsOwnHeaderFirst) {
  for (const std::string& file : SourceFiles()) {
    const std::string header = fs::path(file).replace_extension(".h").generic_string();
    if (!file.ends_with(".cc") || !fs::exists(kSource / header)) continue;
    const std::string text = ReadText(kSource / file);
    const size_t first = text.find("#include ");
    ASSERT_NE(first, std::string::npos) << file;
    EXPECT_TRUE(text.substr(first).starts_with("#include \"" + header + "\"\n")) << "src/" << file;
  }
}

TEST(Layering, WrongIncludesAreFound) {
  const Layers layers = ParseLayers("# comment\nbase:\nio: base\nmodel: base io\ntesting: base\n");
  EXPECT_FALSE(Objection(layers, "model/text01/forward.cc", "io/file.h"));
  EXPECT_FALSE(Objection(layers, "io/file.cc", "io/file.h"));
  EXPECT_FALSE(Objection(layers, "io/file_test.cc", "testing/near.h"));
  EXPECT_TRUE(Objection(layers, "io/file.cc", "testing/near.h"));
  EXPECT_TRUE(Objection(layers, "io/file.cc", "model/text01/config.h"));
  EXPECT_TRUE(Objection(layers, "io/file_test.cc", "model/text01/config.h"));
  EXPECT_TRUE(Objection(layers, "io/file.cc", "file.h"));
  EXPECT_TRUE(Objection(layers, "io/file.cc", "hwy/highway.h"));
  EXPECT_TRUE(Objection(layers, "attic/old.cc", "base/json.h"));
}

TEST(Layering, IncludesAreFoundInAnySpelling) {
  const std::string text =
      "#include \"a/b.h\"\n  #  include \"c/d.h\"  // why\n#include <e/f.h>\n// #include "
      "\"g/h.h\"\n";
  EXPECT_EQ(QuotedIncludes(text), (std::vector<std::string>{"a/b.h", "c/d.h"}));
}

}  // namespace
