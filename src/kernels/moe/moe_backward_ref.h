// A token's experts and the balance of all, in double. For tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace mm01 {

struct MoeReference {
  using Doubles = std::vector<double>;

  int64_t experts, k, capacity;  // capacity 0: dropless

  static Doubles Softmax(const Doubles& x) {
    const double top = *std::max_element(x.begin(), x.end());
    Doubles p;
    double sum = 0.0;
    for (const double v : x) sum += std::exp(v - top);
    for (const double v : x) p.push_back(std::exp(v - top) / sum);
    return p;
  }

  // What token t gives each expert: [T, E], 0 where it is not routed or was dropped; and how many
  // rows each was routed.
  Doubles Gates(const Doubles& logits, std::vector<int64_t>& counts) const {
    const int64_t tokens = static_cast<int64_t>(logits.size()) / experts;
    counts.assign(static_cast<size_t>(experts), 0);
    Doubles gates(logits.size(), 0.0);
    for (int64_t t = 0; t < tokens; ++t) {
      const Doubles row(logits.begin() + t * experts, logits.begin() + (t + 1) * experts);
      std::vector<int64_t> order(row.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return row[static_cast<size_t>(a)] > row[static_cast<size_t>(b)];
      });
      double sum = 0.0;
      for (int64_t i = 0; i < k; ++i) sum += std::exp(row[Place(order, i)]);
      for (int64_t i = 0; i < k; ++i) {
        int64_t& count = counts[Place(order, i)];
        if (capacity == 0 || count < capacity) {
          gates[static_cast<size_t>(t * experts) + Place(order, i)] =
              std::exp(row[Place(order, i)]) / sum;
        }
        ++count;
      }
    }
    return gates;
  }

  // The two auxiliary losses, over the logits of all layers. Counts are constants.
  double Paper(const std::vector<Doubles>& logits,
               const std::vector<std::vector<int64_t>>& counts) {
    double loss = 0.0;
    for (size_t l = 0; l < logits.size(); ++l) {
      const double tokens = Tokens(logits[l]);
      for (int64_t e = 0; e < experts; ++e) {
        loss += static_cast<double>(counts[l][static_cast<size_t>(e)]) / tokens *
                ProbabilitySum(logits[l], e) / tokens / static_cast<double>(experts);
      }
    }
    return loss;
  }
  double Transformers(const std::vector<Doubles>& logits,
                      const std::vector<std::vector<int64_t>>& counts) {
    double loss = 0.0;
    for (int64_t e = 0; e < experts; ++e) {
      double rows = 0.0, routed = 0.0, probability = 0.0;
      for (size_t l = 0; l < logits.size(); ++l) {
        rows += Tokens(logits[l]);
        routed += static_cast<double>(counts[l][static_cast<size_t>(e)]);
        probability += ProbabilitySum(logits[l], e);
      }
      loss += static_cast<double>(experts) * routed / rows * probability / rows;
    }
    return loss;
  }

 private:
  static size_t Place(const std::vector<int64_t>& order, int64_t i) {
    return static_cast<size_t>(order[static_cast<size_t>(i)]);
  }
  double Tokens(const Doubles& logits) const {
    return static_cast<double>(logits.size()) / static_cast<double>(experts);
  }
  double ProbabilitySum(const Doubles& logits, int64_t expert) const {
    double sum = 0.0;
    for (auto row = logits.begin(); row != logits.end(); row += experts) {
      sum += Softmax({row, row + experts})[static_cast<size_t>(expert)];
    }
    return sum;
  }
};

}  // namespace mm01
