// Texts keep their runs through every operation on strings.
#include "io/jinja/text.h"

#include <gtest/gtest.h>

#include "io/jinja/strings.h"
#include "io/jinja/value.h"

namespace mm01::jinja {
namespace {

// A text as its runs, the untrusted ones in angle brackets.
std::string Marked(const Text& text) {
  std::string marked;
  size_t begin = 0;
  for (const Run& run : text.runs) {
    const std::string bytes(text.view.substr(begin, run.end - begin));
    marked += run.trusted ? bytes : "<" + bytes + ">";
    begin = run.end;
  }
  EXPECT_EQ(begin, text.size());
  return marked;
}

class TextTest : public testing::Test {
 protected:
  // "ab" by the template, "cd" by the user, "ef" by the template.
  const Text& Mixed(std::string_view a = "ab", std::string_view b = "cd",
                    std::string_view c = "ef") {
    TextBuilder builder(rt_.budget);
    builder.Append(a, true);
    builder.Append(b, false);
    builder.Append(c, true);
    return *rt_.Built(std::move(builder)).value().text;
  }
  std::string Items(const Value& list) {
    std::string all;
    for (const Value& v : list.seq->items) all += Marked(*v.text) + "|";
    return all;
  }

  Runtime rt_;
};

TEST_F(TextTest, NeighboursOfOneTrustAreOneRun) {
  TextBuilder builder(rt_.budget);
  builder.Append("a", true);
  builder.Append("", false);
  builder.Append("b", true);
  builder.Append("c", false);
  const Value v = rt_.Built(std::move(builder)).value();
  EXPECT_EQ(v.text->runs.size(), 2u);
  EXPECT_EQ(Marked(*v.text), "ab<c>");
}

TEST_F(TextTest, SlicesCutRuns) {
  EXPECT_EQ(Marked(*rt_.Slice(Mixed(), 1, 3).text), "b<c>");
  EXPECT_EQ(Marked(*rt_.Slice(Mixed(), 2, 4).text), "<cd>");
  EXPECT_EQ(Marked(*rt_.Slice(Mixed(), 3, 3).text), "");
}

TEST_F(TextTest, OperationsCarryRuns) {
  EXPECT_EQ(Marked(*ChangeCase(rt_, Mixed(), Case::kUpper)->text), "AB<CD>EF");
  EXPECT_EQ(Marked(*TitleWords(rt_, Mixed("a", " b", "c"))->text), "A< B>c");
  EXPECT_EQ(Marked(*Reverse(rt_, Mixed())->text), "fe<dc>ba");
  EXPECT_EQ(Marked(*Strip(rt_, Mixed(" ", " x ", " "), nullptr, true, true).text), "<x>");
  const Text& comma = Mixed(",", "", "");
  EXPECT_EQ(Items(*Split(rt_, Mixed("a,", "b,c", ",d"), &comma, -1, false)), "a|<b>|<c>|d|");
  // What is put in keeps its own trust.
  EXPECT_EQ(Marked(*Replace(rt_, Mixed(), Mixed("b", "", ""), Mixed("", "X", ""), -1)->text),
            "a<Xcd>ef");
  EXPECT_EQ(Marked(*Replace(rt_, Mixed(), Mixed("", "c", ""), Mixed("Y", "", ""), -1)->text),
            "abY<d>ef");
}

TEST_F(TextTest, AFoundTextMaySpanRuns) {
  EXPECT_EQ(Marked(*Replace(rt_, Mixed(), Mixed("bc", "", ""), Mixed("", "", ""), -1)->text),
            "a<d>ef");
}

TEST_F(TextTest, SizeIsBounded) {
  TextBuilder builder(rt_.budget);
  builder.Append(std::string(kMaxTextBytes, 'x'), true);
  EXPECT_FALSE(builder.full());
  builder.Append("y", true);
  EXPECT_TRUE(builder.full());
  EXPECT_EQ(rt_.Built(std::move(builder)).status().code(), Code::kTooLarge);
}

TEST_F(TextTest, TheBudgetIsSpentByBytesToo) {
  int64_t num_bytes = 0;
  while (rt_.budget.Bytes(1 << 20)) num_bytes += 1 << 20;
  EXPECT_EQ(num_bytes, 256 * kMaxSteps / (1 << 20) * (1 << 20));
  EXPECT_TRUE(rt_.budget.spent());
  EXPECT_FALSE(rt_.budget.Step());
}

}  // namespace
}  // namespace mm01::jinja
