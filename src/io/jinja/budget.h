// What one rendering may use. All limits are counts, so a template fails the same way everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mm01::jinja {

inline constexpr size_t kMaxSourceBytes = 256u << 10;
inline constexpr size_t kMaxTextBytes = 8u << 20;  // the output, and every string on the way
inline constexpr int64_t kMaxSteps = 1'000'000;
inline constexpr int64_t kMaxItems = 100'000;  // elements of one list, tuple or range
inline constexpr int kMaxNesting = 64;         // of the source, of values, of macro calls
inline constexpr int kMaxDepth = 400;          // of the evaluator, in syntax nodes

// A step is a syntax node that is evaluated, or 256 bytes that are copied (fewer where each is
// looked at), or 16 elements that are touched.
class Budget {
 public:
  // Both return false from the moment that the budget is spent. An operation that sees false stops
  // early with any result; the evaluator looks at spent() before that result can be used.
  bool Step() { return Spend(kUnitsPerStep); }
  bool Bytes(size_t n) { return Spend(n); }
  bool Items(size_t n) { return Spend(16 * n); }

  bool spent() const { return spent_; }

 private:
  static constexpr uint64_t kUnitsPerStep = 256;

  bool Spend(uint64_t units) {
    if (units > left_) {
      left_ = 0;
      spent_ = true;
    } else {
      left_ -= units;
    }
    return !spent_;
  }

  uint64_t left_ = kUnitsPerStep * kMaxSteps;
  bool spent_ = false;
};

}  // namespace mm01::jinja
