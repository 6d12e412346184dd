// Lightning on a GPU against the recurrence in double, and the bits that it promises.
#include "kernels/lightning/lightning_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "device/device.h"
#include "kernels/lightning/lightning_cases.h"
#include "kernels/lightning/lightning_ref.h"
#include "testing/arrays.h"
#include "testing/cuda_tensor.h"
#include "testing/near.h"

namespace mm01 {
namespace {

constexpr int64_t kB = kLightningBlock;
using Floats = std::vector<float>;

// One layer's inputs for a document: q, k and v as a fused projection leaves them, [T, H, 3, K].
// Normal numbers, or SiLU of them.
struct Document {
  DType dtype;
  int64_t heads, dim;
  Floats qkv;

  Document(DType type, uint64_t stream, int64_t rows, int64_t num_heads, int64_t head_dim,
           bool silu = false)
      : dtype(type),
        heads(num_heads),
        dim(head_dim),
        qkv(RandomFloats(stream, rows * num_heads * 3 * head_dim)) {
    for (float& x : qkv) {
      if (silu) x = x / (1.0f + std::exp(-x));
      if (dtype == DType::kBF16) x = ToFloat(ToBF16(x));
    }
  }

  int64_t width() const { return heads * 3 * dim; }
  int64_t rows() const { return static_cast<int64_t>(qkv.size()) / width(); }
  // q, k or v by itself, [T, H, K]
  Floats Part(int64_t which) const {
    Floats part;
    for (int64_t i = which; i < rows() * heads * 3; i += 3) {
      part.insert(part.end(), qkv.begin() + i * dim, qkv.begin() + (i + 1) * dim);
    }
    return part;
  }
  std::vector<double> Reference(const Floats& slope, std::vector<double>& state) const {
    state.assign(static_cast<size_t>(heads * dim * dim), 0.0);
    return ReferenceLightning(Part(0), Part(1), Part(2), slope, dim, state);
  }
};

// State slots full of NaN.
struct Slots {
  CudaTensor s, k_rows, v_rows;

  Slots(Queue& queue, int64_t num, const Document& d)
      : s(queue, DType::kF32, {num, d.heads, d.dim, d.dim}),
        k_rows(queue, d.dtype, {num, d.heads, kB * d.dim}),
        v_rows(queue, d.dtype, {num, d.heads, kB * d.dim}) {}

  LightningState State() const { return {s, k_rows, v_rows}; }
  bool IsUntouched(int64_t slot) const {
    const auto is_poison = [&](const CudaTensor& t) {
      const std::vector<uint8_t> bytes = t.Bytes();
      const auto n = static_cast<std::ptrdiff_t>(bytes.size()) / t.tensor().dim(0);
      return std::all_of(bytes.begin() + slot * n, bytes.begin() + (slot + 1) * n,
                         [](uint8_t b) { return b == 0xff; });
    };
    return is_poison(s) && is_poison(k_rows) && is_poison(v_rows);
  }
};

// Rows first .. first + count - 1 of a document, for the slot that has read those before.
struct Piece {
  const Document* document;
  int32_t slot;
  int64_t first, count;
};

enum class Path { kPrefill, kDecode, kSettled };

Tensor PartOf(const Tensor& qkv, int64_t which) {
  const int64_t rows = qkv.dim(0), heads = qkv.dim(1), dim = qkv.dim(3);
  Tensor t(qkv.dtype, static_cast<std::byte*>(qkv.data) + which * dim * SizeOf(qkv.dtype),
           {rows, heads, dim});
  t.stride = {heads * 3 * dim, 3 * dim, 1};
  return t;
}

Floats Slopes(const Document& d, int64_t layer = 3) {
  return LightningSlopes(SlopeRule::kOriginal, d.heads, layer, 8);
}

class LightningCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto gpu = FindCuda(); !gpu.ok()) GTEST_SKIP() << gpu.status().message();
    queue_ = std::make_unique<Queue>(1, Device::kCuda);
  }
  Queue& queue() { return *queue_; }

  // One call with all pieces: out [T, H, V].
  Floats Step(Slots& slots, const Floats& slope, const std::vector<Piece>& pieces,
              Path path = Path::kPrefill) {
    const Document& d = *pieces[0].document;
    Floats values;
    std::vector<int64_t> cu = {0}, position;
    std::vector<int32_t> slot;
    for (const Piece& p : pieces) {
      const auto begin = p.document->qkv.begin() + p.first * d.width();
      values.insert(values.end(), begin, begin + p.count * d.width());
      cu.push_back(cu.back() + p.count);
      position.push_back(p.first);
      slot.push_back(p.slot);
    }
    const int64_t rows = cu.back();
    if (rows == 0) return {};
    const CudaTensor qkv(queue(), d.dtype, {rows, d.heads, 3, d.dim}, values);
    const CudaTensor out(queue(), d.dtype, {rows, d.heads, d.dim});
    const CudaTensor slopes(queue(), DType::kF32, {std::ssize(slope)}, slope);
    const CudaTensor cu_seqlens = CudaTensor::Int64(queue(), cu);
    const CudaTensor positions = CudaTensor::Int64(queue(), position);
    const CudaTensor slot_of = CudaTensor::Int32(queue(), {std::ssize(slot)}, slot);
    cuda::Lightning(queue(), {.q = PartOf(qkv, 0),
                              .k = PartOf(qkv, 1),
                              .v = PartOf(qkv, 2),
                              .slope = slopes,
                              .cu_seqlens = cu_seqlens,
                              .position = positions,
                              .slot = slot_of,
                              .max_rows = path == Path::kPrefill ? std::max<int64_t>(2, rows) : 1,
                              .settled = path == Path::kSettled,
                              .state = slots.State(),
                              .out = out});
    return out.ToFloat();
  }

  // The document from `first` on, alone, in chunks.
  Floats Read(Slots& slots, int32_t slot, const Document& d, int64_t chunk, int64_t first = 0,
              Path path = Path::kPrefill) {
    const Floats slope = Slopes(d);
    Floats out;
    for (int64_t at = first; at < d.rows(); at += chunk) {
      const Floats part =
          Step(slots, slope, {{&d, slot, at, std::min(chunk, d.rows() - at)}}, path);
      out.insert(out.end(), part.begin(), part.end());
    }
    return out;
  }
  Floats Whole(const Document& d) {
    Slots slots(queue(), 1, d);
    return Read(slots, 0, d, d.rows());
  }
  Floats FinalState(const Slots& slots, const Document& d, const Floats& slope, int64_t slot,
                    int64_t position) {
    const CudaTensor out(queue(), DType::kF32, {d.heads, d.dim, d.dim});
    const CudaTensor slopes(queue(), DType::kF32, {std::ssize(slope)}, slope);
    cuda::LightningFinalState(queue(), slots.State(), slot, position, slopes, out);
    return out.ToFloat();
  }

  // A document for each kernel: the tensor cores', and the one for what they do not take.
  static std::vector<Document> Documents(uint64_t stream, int64_t rows) {
    return {
        Document(DType::kBF16, stream, rows, 2, 128), Document(DType::kBF16, stream, rows, 3, 64),
        Document(DType::kF32, stream, rows, 2, 128), Document(DType::kF32, stream, rows, 2, 48)};
  }
  static std::string NameOf(const Document& d) {
    return ToString(d.dtype) + ", head dim " + std::to_string(d.dim);
  }

 private:
  std::unique_ptr<Queue> queue_;
};

double Tolerance(DType dtype) {
  return dtype == DType::kF32 ? 1e-5 : 2e-3;
}

TEST_F(LightningCudaTest, FollowsTheRecurrence) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (LightningCase c : LightningCases()) {
      for (const int64_t dim : {c.dim, int64_t{128}}) {
        SCOPED_TRACE(std::string(c.name) + ", " + ToString(dtype) + ", " + std::to_string(dim));
        std::vector<Document> documents;
        for (const int64_t n : c.lengths) documents.emplace_back(dtype, n, n, c.heads, dim);
        const Floats slope = Slopes(documents[0], c.layer);
        // Every other slot belongs to nobody.
        Slots slots(queue(), 2 * std::ssize(documents) + 1, documents[0]);
        std::vector<Piece> pieces;
        std::vector<double> want;
        std::vector<std::vector<double>> states;
        for (const Document& d : documents) {
          pieces.push_back({&d, static_cast<int32_t>(2 * pieces.size() + 1), 0, d.rows()});
          std::vector<double> state;
          const std::vector<double> part = d.Reference(slope, state);
          want.insert(want.end(), part.begin(), part.end());
          states.push_back(state);
        }
        EXPECT_LE(RelativeError(Step(slots, slope, pieces), want), Tolerance(dtype));
        for (size_t i = 0; i < pieces.size(); ++i) {
          EXPECT_TRUE(slots.IsUntouched(2 * static_cast<int64_t>(i)));
          if (documents[i].rows() == 0) continue;
          const Floats state =
              FinalState(slots, documents[i], slope, pieces[i].slot, documents[i].rows());
          EXPECT_LE(RelativeError(state, states[i]), 1e-5) << "state " << i;
        }
      }
    }
  }
}

// One more rounding than that of o, of S or of scores, would give 2.3e-3 here.
TEST_F(LightningCudaTest, RoundingTheOutputIsAllThatBf16Costs) {
  const Floats all_first = LightningSlopes(SlopeRule::kOriginal, 64, 0, 80);
  const Floats all_last = LightningSlopes(SlopeRule::kOriginal, 64, 78, 80);
  for (const bool silu : {false, true}) {
    const Document d(DType::kBF16, 21, 1000, 4, 128, silu);
    for (const Floats& all : {all_first, all_last}) {
      const Floats slope = {all[0], all[21], all[42], all[63]};
      Slots slots(queue(), 1, d);
      std::vector<double> state;
      const std::vector<double> want = d.Reference(slope, state);
      EXPECT_LE(RelativeError(Step(slots, slope, {{&d, 0, 0, d.rows()}}), want), 1.7e-3);
      EXPECT_LE(RelativeError(FinalState(slots, d, slope, 0, d.rows()), state), 1e-5);
    }
  }
}

TEST_F(LightningCudaTest, ChunkingDoesNotChangeABitOfPrefill) {
  for (const Document& d : Documents(2, 300)) {
    const Floats want = Whole(d);
    for (const int64_t chunk : {1, 7, 63, 64, 65, 256}) {
      Slots slots(queue(), 1, d);
      EXPECT_TRUE(SameBits(Read(slots, 0, d, chunk), want)) << NameOf(d) << ", chunks of " << chunk;
    }
  }
}

TEST_F(LightningCudaTest, DecodeGoesOnWherePrefillStopped) {
  for (const Document& d : Documents(3, 200)) {
    SCOPED_TRACE(NameOf(d));
    const Floats slope = Slopes(d);
    std::vector<double> state;
    const std::vector<double> want = d.Reference(slope, state);
    for (const int64_t prompt : {0, 1, 63, 64, 65, 100}) {
      Slots slots(queue(), 1, d);
      Floats out = Step(slots, slope, {{&d, 0, 0, prompt}});
      const Path path = prompt % 2 == 0 ? Path::kDecode : Path::kSettled;
      const Floats rest = Read(slots, 0, d, 1, prompt, path);
      out.insert(out.end(), rest.begin(), rest.end());
      EXPECT_LE(RelativeError(out, want), Tolerance(d.dtype)) << "a prompt of " << prompt;
      EXPECT_LE(RelativeError(FinalState(slots, d, slope, 0, d.rows()), state), 1e-5);
    }
    // And prefill where decode stopped.
    Slots slots(queue(), 1, d);
    Floats out;
    for (int64_t t = 0; t < 90; ++t) {
      const Floats row = Step(slots, slope, {{&d, 0, t, 1}}, Path::kDecode);
      out.insert(out.end(), row.begin(), row.end());
    }
    const Floats rest = Read(slots, 0, d, 110, 90);
    out.insert(out.end(), rest.begin(), rest.end());
    EXPECT_LE(RelativeError(out, want), Tolerance(d.dtype));
  }
}

TEST_F(LightningCudaTest, ASequenceHasTheSameBitsAloneAndInABatch) {
  const std::vector<int64_t> lengths = {90, 1, 200, 64, 0, 129};
  for (const auto& [dtype, dim] : {std::pair{DType::kBF16, int64_t{128}}, {DType::kF32, 32}}) {
    std::vector<Document> documents;
    for (const int64_t n : lengths) documents.emplace_back(dtype, 10 + n, n, 2, dim);
    const Floats slope = Slopes(documents[0]);
    std::vector<Floats> want, got(lengths.size());
    for (const Document& d : documents) want.push_back(Whole(d));

    // Steps of 1, 37 or 80 rows, each sequence at its own pace, the order turned round each time.
    Slots slots(queue(), 8, documents[0]);
    const std::vector<int64_t> paces = {37, 1, 80};
    std::vector<int64_t> done(lengths.size(), 0);
    for (size_t round = 0; done != lengths; ++round) {
      std::vector<Piece> pieces;
      std::vector<size_t> owner;
      for (size_t i = 0; i < lengths.size(); ++i) {
        const size_t n = round % 2 ? lengths.size() - 1 - i : i;
        const int64_t count = std::min(paces[(n + round) % 3], lengths[n] - done[n]);
        pieces.push_back({&documents[n], static_cast<int32_t>(7 - n), done[n], count});
        owner.push_back(n);
        done[n] += count;
      }
      const Floats out = Step(slots, slope, pieces);
      auto at = out.begin();
      for (size_t i = 0; i < pieces.size(); ++i) {
        Floats& mine = got[owner[i]];
        mine.insert(mine.end(), at, at + pieces[i].count * 2 * dim);
        at += pieces[i].count * 2 * dim;
      }
    }
    for (size_t n = 0; n < lengths.size(); ++n) EXPECT_TRUE(SameBits(got[n], want[n])) << n;
    EXPECT_TRUE(slots.IsUntouched(0));
    EXPECT_TRUE(slots.IsUntouched(1));
  }
}

// Alone a CTA does 32 columns of V; with 140 sequences more, 64.
TEST_F(LightningCudaTest, ARowDecodesToTheSameBitsAloneAndInABatch) {
  constexpr int64_t kOthers = 140;
  for (const auto& [dtype, dim] : {std::pair{DType::kBF16, int64_t{128}}, {DType::kF32, 64}}) {
    const std::vector<int64_t> begins = {0, 63, 64, 100, 127};
    std::vector<Document> documents;
    for (const int64_t n : begins) documents.emplace_back(dtype, 40 + n, n + 12, 2, dim);
    const Floats slope = Slopes(documents[0]);
    Slots together(queue(), 5 + kOthers, documents[0]);
    std::vector<Floats> want, got(5);
    for (size_t n = 0; n < 5; ++n) {
      Slots alone(queue(), 1, documents[0]);
      Step(alone, slope, {{&documents[n], 0, 0, begins[n]}});
      Step(together, slope, {{&documents[n], static_cast<int32_t>(n), 0, begins[n]}});
      want.push_back(Read(alone, 0, documents[n], 1, begins[n], Path::kDecode));
    }
    for (int64_t t = 0; t < 12; ++t) {
      std::vector<Piece> pieces;
      for (size_t n = 0; n < 5; ++n) {
        pieces.push_back({&documents[n], static_cast<int32_t>(n), begins[n] + t, 1});
      }
      // A sequence that sits this step out.
      pieces.insert(pieces.begin() + 2, {&documents[0], 0, begins[0] + t, 0});
      for (int64_t n = 0; n < kOthers; ++n) {
        pieces.push_back({&documents[0], static_cast<int32_t>(5 + n), t, 1});
      }
      const Floats out = Step(together, slope, pieces, Path::kSettled);
      for (int64_t n = 0; n < 5; ++n) {
        got[static_cast<size_t>(n)].insert(got[static_cast<size_t>(n)].end(),
                                           out.begin() + n * 2 * dim,
                                           out.begin() + (n + 1) * 2 * dim);
      }
    }
    for (size_t n = 0; n < 5; ++n) EXPECT_TRUE(SameBits(got[n], want[n])) << n;
  }
}

TEST_F(LightningCudaTest, NeighboursOfNaNChangeNoBit) {
  for (const Document& d : Documents(5, 150)) {
    const Floats want = Whole(d), slope = Slopes(d);
    Document bad = d;
    std::fill(bad.qkv.begin(), bad.qkv.end(), kNaN);
    Slots slots(queue(), 3, d);
    Floats got;
    for (const int64_t at : {0, 70}) {
      const int64_t count = at == 0 ? 70 : 80;
      const Floats out =
          Step(slots, slope, {{&bad, 0, at, 33}, {&d, 1, at, count}, {&bad, 2, at, 90}});
      const int64_t width = d.heads * d.dim;
      got.insert(got.end(), out.begin() + 33 * width, out.begin() + (33 + count) * width);
    }
    EXPECT_TRUE(SameBits(got, want)) << NameOf(d);
  }
}

TEST_F(LightningCudaTest, ASlotIsUsedAgainWithoutClearing) {
  for (const Document& d : Documents(6, 140)) {
    Document old = d;
    std::fill(old.qkv.begin(), old.qkv.end(), kNaN);
    const Floats want = Whole(d);
    Slots slots(queue(), 1, d);
    Read(slots, 0, old, 100);
    EXPECT_TRUE(SameBits(Read(slots, 0, d, 9), want)) << NameOf(d);
    Read(slots, 0, old, 140);
    Read(slots, 0, d, 1, 0, Path::kDecode);
    std::vector<double> state;
    const std::vector<double> reference = d.Reference(Slopes(d), state);
    Read(slots, 0, old, 140);
    EXPECT_LE(RelativeError(Read(slots, 0, d, 1, 0, Path::kDecode), reference), Tolerance(d.dtype));
  }
}

TEST_F(LightningCudaTest, RowsSinceTheBorderCanBeTakenBack) {
  for (const Document& d : Documents(7, 120)) {
    const Document draft(d.dtype, 8, 120, d.heads, d.dim);
    const Floats want = Whole(d), slope = Slopes(d);
    Slots slots(queue(), 1, d);
    Step(slots, slope, {{&d, 0, 0, 70}});
    Step(slots, slope, {{&draft, 0, 70, 20}});
    Step(slots, slope, {{&draft, 0, 90, 1}}, Path::kDecode);
    EXPECT_TRUE(SameBits(Read(slots, 0, d, 50, 70),
                         Floats(want.begin() + 70 * d.heads * d.dim, want.end())))
        << NameOf(d);
  }
}

// q, k, v apart, and an `out` whose rows are twice as wide as they need to be.
TEST_F(LightningCudaTest, StridesDoNotChangeABit) {
  for (const Document& d : Documents(9, 77)) {
    const CudaTensor q(queue(), d.dtype, {77, d.heads, d.dim}, d.Part(0));
    const CudaTensor k(queue(), d.dtype, {77, d.heads, d.dim}, d.Part(1));
    const CudaTensor v(queue(), d.dtype, {77, d.heads, d.dim}, d.Part(2));
    const CudaTensor out(queue(), d.dtype, {77, d.heads, 2 * d.dim});
    const CudaTensor slope(queue(), DType::kF32, {d.heads}, Slopes(d));
    const CudaTensor cu = CudaTensor::Int64(queue(), {0, 77});
    const CudaTensor position = CudaTensor::Int64(queue(), {0});
    const CudaTensor slot = CudaTensor::Int32(queue(), {1}, {0});
    const Slots slots(queue(), 1, d);
    Tensor strided = out;
    strided.shape[2] = d.dim;
    cuda::Lightning(queue(), {.q = q,
                              .k = k,
                              .v = v,
                              .slope = slope,
                              .cu_seqlens = cu,
                              .position = position,
                              .slot = slot,
                              .max_rows = 77,
                              .state = slots.State(),
                              .out = strided});
    const Floats wide = out.ToFloat();
    Floats got;
    int64_t unwritten = 0;
    for (int64_t i = 0; i < 77 * d.heads; ++i) {
      const auto row = wide.begin() + i * 2 * d.dim;
      got.insert(got.end(), row, row + d.dim);
      unwritten += std::count_if(row + d.dim, row + 2 * d.dim, [](float x) { return x != x; });
    }
    EXPECT_TRUE(SameBits(got, Whole(d))) << NameOf(d);
    EXPECT_EQ(unwritten, 77 * d.heads * d.dim) << NameOf(d);
  }
}

TEST_F(LightningCudaTest, RanksAddWhatCameBefore) {
  for (const Document& d : Documents(11, 200)) {
    SCOPED_TRACE(NameOf(d));
    const Floats slope = Slopes(d), q = d.Part(0);
    std::vector<double> state;
    const std::vector<double> want = d.Reference(slope, state);
    constexpr int64_t kFirst = 90;
    Document second = d;
    second.qkv.erase(second.qkv.begin(), second.qkv.begin() + kFirst * d.width());
    Slots slots(queue(), 2, d);
    Step(slots, slope, {{&d, 0, 0, kFirst}});
    const Floats before = FinalState(slots, d, slope, 0, kFirst);
    const Floats local = Step(slots, slope, {{&second, 1, 0, second.rows()}});

    const int64_t width = d.heads * d.dim, rows = second.rows();
    const CudaTensor out(queue(), d.dtype, {rows, d.heads, d.dim}, local);
    const CudaTensor q_rows(queue(), d.dtype, {rows, d.heads, d.dim},
                            Floats(q.begin() + kFirst * width, q.end()));
    const CudaTensor s_in(queue(), DType::kF32, {d.heads, d.dim, d.dim}, before);
    const CudaTensor slopes(queue(), DType::kF32, {d.heads}, slope);
    cuda::LightningAddIncoming(queue(), q_rows, slopes, s_in, out);
    // bf16 rounds the local part, and then the sum.
    EXPECT_LE(RelativeError(out.ToFloat(),
                            std::vector<double>(want.begin() + kFirst * width, want.end())),
              d.dtype == DType::kF32 ? 1e-5 : 3e-3);
  }
}

TEST_F(LightningCudaTest, NoRowsAreNoWork) {
  const Document d(DType::kBF16, 1, 4, 2, 128);
  const Slots slots(queue(), 1, d);
  const CudaTensor qkv(queue(), d.dtype, {4, 2, 3, 128}, d.qkv);
  const CudaTensor out(queue(), d.dtype, {4, 2, 128});
  const CudaTensor slope(queue(), DType::kF32, {2}, Slopes(d));
  const CudaTensor cu = CudaTensor::Int64(queue(), {0, 0});
  const CudaTensor position = CudaTensor::Int64(queue(), {5});
  const CudaTensor slot = CudaTensor::Int32(queue(), {1}, {0});
  for (const int64_t max_rows : {0, 1}) {
    cuda::Lightning(queue(), {.q = PartOf(qkv, 0).Rows(0, 0),
                              .k = PartOf(qkv, 1).Rows(0, 0),
                              .v = PartOf(qkv, 2).Rows(0, 0),
                              .slope = slope,
                              .cu_seqlens = cu,
                              .position = position,
                              .slot = slot,
                              .max_rows = max_rows,
                              .state = slots.State(),
                              .out = out.tensor().Rows(0, 0)});
  }
  queue().Wait();
  EXPECT_TRUE(slots.IsUntouched(0));
}

TEST_F(LightningCudaTest, WhatDoesNotFitIsABug) {
  const Document odd(DType::kF32, 1, 4, 2, 24), d(DType::kF32, 1, 4, 2, 16);
  const Document other(DType::kBF16, 1, 4, 2, 16), wide(DType::kF32, 1, 4, 2, 32);
  Slots odd_slots(queue(), 1, odd), other_slots(queue(), 1, other), wide_slots(queue(), 1, wide);
  const Floats slope = Slopes(d);
  EXPECT_THROW(Step(odd_slots, slope, {{&odd, 0, 0, 4}}), Bug) << "head dim 24";
  EXPECT_THROW(Step(other_slots, slope, {{&d, 0, 0, 4}}), Bug) << "rows of another type";
  EXPECT_THROW(Step(wide_slots, slope, {{&d, 0, 0, 4}}), Bug);
}

}  // namespace
}  // namespace mm01
