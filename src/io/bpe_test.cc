#include "io/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/rng.h"

namespace mm01 {
namespace {

std::array<int32_t, 256> Bytes(std::string_view bytes) {
  std::array<int32_t, 256> tokens;
  tokens.fill(Bpe::kNoToken);
  for (size_t i = 0; i < bytes.size(); ++i) {
    tokens[static_cast<uint8_t>(bytes[i])] = static_cast<int32_t>(i);
  }
  return tokens;
}

std::vector<int32_t> Encode(const Bpe& bpe, std::string_view piece) {
  std::vector<int32_t> ids;
  EXPECT_EQ(BpeEncoder(bpe).Append(piece, ids), std::nullopt);
  return ids;
}

// The definition: look for the best pair from the left, join it, begin again.
std::vector<int32_t> Naive(const std::array<int32_t, 256>& bytes,
                           const std::vector<Bpe::Merge>& merges, std::string_view piece) {
  std::map<std::pair<int32_t, int32_t>, size_t> ranks;
  for (size_t i = 0; i < merges.size(); ++i) ranks[{merges[i].left, merges[i].right}] = i;
  std::vector<int32_t> ids;
  for (const char c : piece) ids.push_back(bytes[static_cast<uint8_t>(c)]);
  for (;;) {
    size_t best = merges.size(), place = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = ranks.find({ids[i], ids[i + 1]});
      if (it == ranks.end() || it->second >= best) continue;
      best = it->second;
      place = i;
    }
    if (best == merges.size()) return ids;
    ids[place] = merges[best].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
}

TEST(Bpe, LowestRankGoesFirstAndTheLeftmostOfEquals) {
  // a=0 b=1 c=2; ab=3 bc=4 aa=5
  const auto bc_first = Bpe::Build(Bytes("abc"), std::vector<Bpe::Merge>{{1, 2, 4}, {0, 1, 3}});
  EXPECT_EQ(Encode(*bc_first, "abc"), (std::vector<int32_t>{0, 4}));
  const auto ab_first = Bpe::Build(Bytes("abc"), std::vector<Bpe::Merge>{{0, 1, 3}, {1, 2, 4}});
  EXPECT_EQ(Encode(*ab_first, "abc"), (std::vector<int32_t>{3, 2}));
  const auto aa = Bpe::Build(Bytes("abc"), std::vector<Bpe::Merge>{{0, 0, 5}});
  EXPECT_EQ(Encode(*aa, "aaaaa"), (std::vector<int32_t>{5, 5, 0}));
  EXPECT_EQ(Encode(*aa, ""), std::vector<int32_t>());
}

TEST(Bpe, OfAPairNamedTwiceTheLaterRankCounts) {
  const auto bpe =
      Bpe::Build(Bytes("abc"), std::vector<Bpe::Merge>{{0, 1, 3}, {1, 2, 4}, {0, 1, 3}});
  EXPECT_EQ(Encode(*bpe, "abc"), (std::vector<int32_t>{0, 4}));
}

TEST(Bpe, EqualsTheDefinitionForAnyOrderOfMerges) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    uint64_t draws = 0;
    const auto draw = [&](size_t n) { return RandomBits(seed, 0, draws++) % n; };
    // Random merges over three letters, in an order that may put a pair before its parts.
    std::vector<std::string> tokens = {"a", "b", "c"};
    std::vector<Bpe::Merge> merges;
    for (int i = 0; i < 25; ++i) {
      const size_t left = draw(tokens.size()), right = draw(tokens.size());
      const std::string both = tokens[left] + tokens[right];
      const auto it = std::find(tokens.begin(), tokens.end(), both);
      const auto id = static_cast<int32_t>(it - tokens.begin());
      if (it == tokens.end()) tokens.push_back(both);
      merges.push_back({static_cast<int32_t>(left), static_cast<int32_t>(right), id});
    }
    if (seed % 2 == 1) {
      for (size_t i = merges.size() - 1; i > 0; --i) std::swap(merges[i], merges[draw(i + 1)]);
    }
    const auto bpe = Bpe::Build(Bytes("abc"), merges);
    ASSERT_TRUE(bpe.ok());
    BpeEncoder encoder(*bpe);
    for (int piece = 0; piece < 100; ++piece) {
      std::string text;
      const size_t length = piece == 0 ? 5000 : draw(60);  // the long one switches the cache on
      for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + draw(piece % 3 + 1));
      if (piece == 0) text.resize(5000, 'a');
      std::vector<int32_t> ids;
      encoder.Append(text, ids);
      if (piece == 0) continue;  // too long for the naive way
      ASSERT_EQ(ids, Naive(Bytes("abc"), merges, text)) << "seed " << seed << ": " << text;
      std::vector<int32_t> again;
      encoder.Append(text, again);
      ASSERT_EQ(again, ids) << "from the cache";
    }
  }
}

TEST(Bpe, AByteWithoutATokenIsNamed) {
  const auto bpe = Bpe::Build(Bytes("abc"), {});
  std::vector<int32_t> ids;
  EXPECT_EQ(BpeEncoder(*bpe).Append("ab\xFF", ids), uint8_t{0xFF});
  EXPECT_TRUE(ids.empty());
}

TEST(Bpe, AWholePieceGoesBeforeMerges) {
  auto bpe = Bpe::Build(Bytes("abc"), std::vector<Bpe::Merge>{{0, 1, 3}});
  bpe->AddWholePiece("abc", 9);
  EXPECT_EQ(Encode(*bpe, "abc"), (std::vector<int32_t>{9}));
  EXPECT_EQ(Encode(*bpe, "abca"), (std::vector<int32_t>{3, 2, 0}));
}

}  // namespace
}  // namespace mm01
