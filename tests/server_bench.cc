// What requests of strangers may cost the server, in the processor's time: schemas and their masks
// at a vocabulary of 200,064 tokens, and the comparison of keys. Prints JSON.
//
// The vocabulary is that of models/nano and pairs of its tokens. A mask is checked: the token that
// is drawn under it must be one that the grammar allows.
#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <random>
#include <set>

#include "base/check.h"
#include "base/json.h"
#include "infer/json_filter.h"
#include "io/byte_level.h"
#include "server/api.h"

namespace mm01 {
namespace {

constexpr int64_t kVocabulary = 200'064;
constexpr int32_t kEnd = kVocabulary - 1;
constexpr int kTokens = 300;  // of each answer
constexpr int kSeeds = 4;
constexpr int kKeyTries = 100'000;

// The processor's time of this thread: other programs do not count.
struct Clock {
  using duration = std::chrono::nanoseconds;
  using time_point = std::chrono::time_point<Clock, duration>;
  static time_point now() {
    timespec now{};
    Check(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0, "no clock for a thread's time");
    return time_point(std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec));
  }
};

double MillisecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

Tokenizer LargeTokenizer() {
  std::ifstream file(MM01_SOURCE_DIR "/models/nano/tokenizer.json");
  Json json = Json::parse(file);
  std::vector<std::string> words;
  for (const auto& [word, id] : json["model"]["vocab"].items()) words.push_back(word);
  std::set<std::string> known(words.begin(), words.end());
  std::mt19937 random(1);
  const size_t num_words = words.size();
  while (std::ssize(words) < kEnd) {
    const std::string pair = words[random() % num_words] + words[random() % num_words];
    if (known.insert(pair).second) words.push_back(pair);
  }
  Json vocabulary = Json::object();
  auto& members = vocabulary.get_ref<Json::object_t&>();
  for (size_t i = 0; i < words.size(); ++i) members.emplace_back(words[i], Json(i));
  const Json large = {
      {"added_tokens",
       Json::array(
           {{{"id", kEnd}, {"content", "<end>"}, {"special", true}, {"normalized", false}}})},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"merges", Json::array()}, {"vocab", vocabulary}}}};
  auto tokenizer = Tokenizer::Parse(large.dump(), "the large vocabulary");
  Check(tokenizer.ok(), tokenizer.status().message());
  return std::move(tokenizer).value();
}

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1,
                         static_cast<size_t>(share * static_cast<double>(values.size())))];
}

std::string Repeat(const std::string& part, int count, const std::string& between = "") {
  std::string text;
  for (int i = 0; i < count; ++i) text += (i > 0 ? between : "") + part;
  return text;
}

std::string Numbered(const std::string& before, const std::string& after, int count) {
  std::string text;
  for (int i = 0; i < count; ++i)
    text += fmt::format("{}{}{}{}", i > 0 ? "," : "", before, i, after);
  return text;
}

// By name: usual ones, and those that somebody would make up.
std::vector<std::pair<std::string, std::string>> Schemas() {
  const std::string text = R"({"type":"string"})";
  std::string refs = R"("a0":{"type":"null"})";
  for (int i = 1; i < 1200; ++i) {
    refs += fmt::format(R"(,"a{}":{{"type":"array","items":{{"$ref":"#/$defs/a{}"}}}})", i, i - 1);
  }
  return {
      {"any object", R"({"type":"object"})"},
      {"a record", R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":
        "integer","minimum":0,"maximum":150},"tags":{"type":"array","items":{"enum":["red",
        "green","blue"]}}},"required":["name","age"]})"},
      {"a string of 1,000 at most", R"({"type":"string","maxLength":1000})"},
      {"a string of 200 to 5,000", R"({"type":"string","minLength":200,"maxLength":5000})"},
      {"a number between", R"({"type":"array","items":{"type":"integer","minimum":-987654321,
        "maximum":987654321987}})"},
      {"a text or a text", R"({"type":"array","items":{"anyOf":[{"type":"string"},{"type":"string",
        "maxLength":50},{"const":"the sea was calm that night, and nobody spoke"}]}})"},
      {"a tree", R"({"$ref":"#/$defs/t","$defs":{"t":{"type":"object","properties":{"v":{"type":
        "number"},"c":{"type":"array","items":{"$ref":"#/$defs/t"}}},"required":["v","c"]}}})"},
      {"1,000 values",
       R"({"type":"array","items":{"enum":[)" + Numbered("\"value ", "\"", 1000) + "]}}"},
      {"1,000 optional properties", R"({"type":"object","properties":{)" +
                                        Numbered("\"p", R"(":{"type":"string"})", 1000) + "}}"},
      {"1,000 of 1,000 strings",
       R"({"type":"array","items":{"anyOf":[)" + Repeat(text, 1000, ",") + "]}}"},
      {"ever shorter strings", R"({"type":"array","items":{"anyOf":[)" +
                                   Numbered(R"({"type":"string","maxLength":)", "}", 150) + "]}}"},
      {"31 lists in lists", Repeat(R"({"type":"array","items":)", 31) + "{}" + Repeat("}", 31)},
      {"90 levels of objects", R"({"$ref":"#/$defs/o","$defs":{"o":{"type":"object","properties":
        {"a":{"$ref":"#/$defs/o"},"b":{"$ref":"#/$defs/o"}}}}})"},
      {"left recursion", R"({"$ref":"#/$defs/a","$defs":{"a":{"anyOf":[{"$ref":"#/$defs/a"},
        {"$ref":"#/$defs/b"},{"type":"null"}]},"b":{"anyOf":[{"$ref":"#/$defs/a"},
        {"$ref":"#/$defs/b"}]}}})"},
      {"a chain of references", R"({"$ref":"#/$defs/a1199","$defs":{)" + refs + "}}"},
      {"20,000 items", R"({"type":"array","minItems":20000,"maxItems":20000,"items":{}})"},
      {"13,000 values", R"({"enum":[)" + Numbered("", "", 12000) + "]}"},
      {"lists of lists, many times", R"({"type":"array","maxItems":400,"items":{"type":"array",
        "maxItems":400,"items":{"type":"string","maxLength":400}}})"},
      {"60,000 characters at least", R"({"type":"string","minLength":60000})"},
      {"text of 64 KiB", R"({"const":")" + Repeat("a", 65000) + "\"}"},
  };
}

Json MeasureMasks(const std::shared_ptr<const infer::Grammar>& grammar,
                  const std::shared_ptr<const infer::TokenTrie>& trie, const Tokenizer& tokenizer) {
  // Found ahead, on a thread of its own, and then applied, between two steps of the engine.
  std::vector<double> ahead, masks;
  std::vector<float> logits(kVocabulary), unused(kVocabulary);
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    std::mt19937 random(seed);
    std::string text;
    Clock::time_point begin = Clock::now();
    const auto filter = infer::MakeGrammarFilter(grammar, trie, {}, {kEnd});
    for (int i = 0; i < kTokens; ++i) {
      if (i > 0) begin = Clock::now();
      filter->Mask(unused);
      ahead.push_back(MillisecondsSince(begin));
      for (float& x : logits) x = static_cast<float>(random() % 1'000'000);
      begin = Clock::now();
      filter->Mask(logits);
      masks.push_back(MillisecondsSince(begin));
      const auto token =
          static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      filter->Accept(token);
      if (token == kEnd) break;
      text += tokenizer.Bytes(token);
    }
    Check(infer::CanBegin(grammar, text), "a mask let a wrong token through");
  }
  return {{"masks", masks.size()},
          {"ahead_p50_ms", Percentile(ahead, 0.5)},
          {"ahead_p99_ms", Percentile(ahead, 0.99)},
          {"ahead_max_ms", Percentile(ahead, 1)},
          {"mask_p50_ms", Percentile(masks, 0.5)},
          {"mask_p99_ms", Percentile(masks, 0.99)},
          {"mask_max_ms", Percentile(masks, 1)}};
}

Json MeasureSchemas() {
  const Tokenizer tokenizer = LargeTokenizer();
  const Clock::time_point begin = Clock::now();
  const auto trie = infer::MakeTokenTrie(tokenizer, kVocabulary);
  Json out = {{"trie_ms", MillisecondsSince(begin)}};
  for (const auto& [name, text] : Schemas()) {
    const Json schema = Json::parse(text);
    const size_t before = mallinfo2().uordblks;
    const Clock::time_point start = Clock::now();
    const auto grammar = infer::CompileSchema(schema);
    Json row = {{"compile_ms", MillisecondsSince(start)}};
    if (grammar.ok()) {
      row["compile_mib"] = static_cast<double>(mallinfo2().uordblks - before) / (1 << 20);
      row.update(MeasureMasks(*grammar, trie, tokenizer));
    } else {
      row["refused"] = grammar.status().message().substr(0, 100);
    }
    out[name] = row;
    std::fputs(fmt::format("{}: {}\n", name, row.dump()).c_str(), stderr);
  }
  return out;
}

// Mean time for a key that differs at its end, and one that differs from its beginning.
Json MeasureKeys() {
  const std::string key(64, 'k');
  std::string wrong[2] = {key, key};
  wrong[0].back() = 'x';
  wrong[1].front() = 'x';
  std::mt19937 random(1);
  std::vector<double> times[2];
  for (int i = 0; i < kKeyTries; ++i) {
    const auto which = static_cast<size_t>(random() % 2);
    const Clock::time_point begin = Clock::now();
    const bool is_equal = server::EqualInConstantTime(wrong[which], key);
    times[which].push_back(MillisecondsSince(begin) * 1e6);
    Check(!is_equal, "a wrong key was taken");
  }
  double mean[2] = {0, 0}, variance[2] = {0, 0};
  for (size_t w = 0; w < 2; ++w) {
    std::sort(times[w].begin(), times[w].end());
    times[w].resize(times[w].size() * 99 / 100);  // without what the system did meanwhile
    const auto n = static_cast<double>(times[w].size());
    for (const double t : times[w]) mean[w] += t / n;
    for (const double t : times[w]) variance[w] += (t - mean[w]) * (t - mean[w]) / n / n;
  }
  return {{"tries", kKeyTries},
          {"mean_ns", {mean[0], mean[1]}},
          {"standard_errors_apart",
           std::abs(mean[0] - mean[1]) / std::sqrt(variance[0] + variance[1])}};
}

}  // namespace
}  // namespace mm01

int main() {
  const mm01::Json out = {{"key_comparison", mm01::MeasureKeys()},
                          {"schemas", mm01::MeasureSchemas()}};
  std::puts(out.dump(2).c_str());
}
