// The whole model against the same in double, token by token, for every kind of configuration.
#include "model/text01/forward.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "testing/arrays.h"
#include "testing/near.h"
#include "testing/tiny_model.h"

namespace mm01 {
namespace {

using Row = std::vector<double>;
using Rows = std::vector<Row>;

Row Times(const Weight& w, const Row& x) {
  Row out(static_cast<size_t>(w.n()), 0.0);
  std::vector<float> row(static_cast<size_t>(w.k()));
  for (size_t n = 0; n < out.size(); ++n) {
    w.GetRow(static_cast<int64_t>(n), row);
    for (size_t i = 0; i < row.size(); ++i) out[n] += static_cast<double>(row[i]) * x[i];
  }
  return out;
}

Row Norm(const Row& x, const std::vector<float>& weight, double eps) {
  double squares = 0.0;
  for (const double v : x) squares += v * v;
  Row out = x;
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * static_cast<double>(weight[i]);
  return out;
}

double Sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}
double SiluOf(double x) {
  return x * Sigmoid(x);
}

// One sequence from its first token on.
class ReferenceModel {
 public:
  explicit ReferenceModel(const TextWeights& w) : w_(w), c_(w.config) {}

  Rows Logits(const std::vector<int32_t>& ids) {
    Rows h;
    std::vector<float> row(static_cast<size_t>(c_.hidden_size));
    for (const int32_t id : ids) {
      w_.embedding.GetRow(id, row);
      h.emplace_back(row.begin(), row.end());
    }
    for (const TextLayer& layer : w_.layers) Layer(layer, h);
    Rows logits;
    for (const Row& x : h)
      logits.push_back(Times(w_.head(), Norm(x, w_.final_norm.values(), c_.norm_eps)));
    return logits;
  }

 private:
  void Layer(const TextLayer& layer, Rows& h) {
    const bool lightning = layer.kind == LayerKind::kLightning;
    Rows x;
    for (const Row& r : h) x.push_back(Norm(r, layer.input_norm.values(), c_.norm_eps));
    const Rows attended = lightning ? Lightning(layer.lightning, x) : Softmax(layer.softmax, x);
    const Residual& r = lightning ? c_.lightning_residual : c_.softmax_residual;
    for (size_t t = 0; t < h.size(); ++t) {
      Add(h[t], c_.post_norm ? x[t] : h[t], r, attended[t]);
      const Row y = Norm(h[t], layer.mlp_norm.values(), c_.norm_eps);
      Add(h[t], c_.post_norm ? y : h[t], c_.mlp_residual, Mlp(layer.mlp, y));
    }
  }

  static void Add(Row& h, const Row& carried, const Residual& r, const Row& branch) {
    for (size_t i = 0; i < h.size(); ++i) h[i] = r.alpha * carried[i] + r.beta * branch[i];
  }

  Rows Lightning(const LightningLayer& l, const Rows& x) const {
    const auto heads = static_cast<size_t>(c_.num_heads), dim = static_cast<size_t>(c_.head_dim);
    std::vector<double> state(heads * dim * dim, 0.0);
    Rows out;
    for (const Row& row : x) {
      Row qkv = Times(l.qkv, row);
      for (double& v : qkv) v = SiluOf(v);
      Row o(heads * dim, 0.0);
      for (size_t h = 0; h < heads; ++h) {
        const double* q = &qkv[3 * h * dim];
        const double kept = std::exp(-static_cast<double>(l.slope.values()[h]));
        for (size_t i = 0; i < dim; ++i) {
          for (size_t j = 0; j < dim; ++j) {
            double& s = state[(h * dim + i) * dim + j];
            s = kept * s + q[dim + i] * q[2 * dim + j];
            o[h * dim + j] += q[i] * s;
          }
        }
      }
      o = Norm(o, l.norm.values(), c_.lightning_norm_eps);
      const Row gate = Times(l.gate, row);
      for (size_t i = 0; i < o.size(); ++i) o[i] *= Sigmoid(gate[i]);
      out.push_back(Times(l.out, o));
    }
    return out;
  }

  // Turns the first rotary_dim dims of every head.
  void Turn(Row& x, size_t position) const {
    const auto dim = static_cast<size_t>(c_.head_dim),
               half = static_cast<size_t>(c_.rotary_dim) / 2;
    for (size_t h = 0; h < x.size(); h += dim) {
      for (size_t j = 0; j < half; ++j) {
        const double angle =
            static_cast<double>(position) *
            std::pow(c_.rope_theta, -static_cast<double>(j) / static_cast<double>(half));
        const double a = x[h + j], b = x[h + j + half];
        x[h + j] = a * std::cos(angle) - b * std::sin(angle);
        x[h + j + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }

  Rows Softmax(const SoftmaxLayer& l, const Rows& x) const {
    const auto heads = static_cast<size_t>(c_.num_heads), dim = static_cast<size_t>(c_.head_dim);
    const size_t group = heads / static_cast<size_t>(c_.num_kv_heads);
    Rows k, v, out;
    for (size_t t = 0; t < x.size(); ++t) {
      Row q = Times(l.q, x[t]);
      k.push_back(Times(l.k, x[t]));
      v.push_back(Times(l.v, x[t]));
      Turn(q, t);
      Turn(k.back(), t);
      Row o(heads * dim, 0.0);
      for (size_t h = 0; h < heads; ++h) {
        const size_t kv = h / group * dim;
        double sum = 0.0;
        for (size_t s = 0; s <= t; ++s) {
          const double score = std::inner_product(&q[h * dim], &q[h * dim] + dim, &k[s][kv], 0.0);
          const double p = std::exp(score / std::sqrt(static_cast<double>(dim)));
          sum += p;
          for (size_t i = 0; i < dim; ++i) o[h * dim + i] += p * v[s][kv + i];
        }
        for (size_t i = 0; i < dim; ++i) o[h * dim + i] /= sum;
      }
      out.push_back(Times(l.out, o));
    }
    return out;
  }

  static Row SwiGlu(const ExpertWeights& e, const Row& x) {
    Row gate = Times(e.w1, x);
    const Row up = Times(e.w3, x);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = SiluOf(gate[i]) * up[i];
    return Times(e.w2, gate);
  }

  Row Mlp(const MlpLayer& m, const Row& x) const {
    if (c_.num_experts == 0) return SwiGlu(m.experts[0], x);
    const Row logits = Times(m.router, x);
    std::vector<size_t> order(logits.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    order.resize(static_cast<size_t>(c_.num_experts_per_token));
    double sum = 0.0;
    for (const size_t e : order) sum += std::exp(logits[e]);
    Row out(x.size(), 0.0);
    for (const size_t e : order) {
      const Row y = SwiGlu(m.experts[e], x);
      for (size_t i = 0; i < y.size(); ++i) out[i] += std::exp(logits[e]) / sum * y[i];
    }
    if (c_.shared_ffn_size == 0) return out;
    const double c = Sigmoid(Times(m.shared_coefficient, x)[0]);
    const Row y = SwiGlu(m.shared, x);
    for (size_t i = 0; i < y.size(); ++i) out[i] = (1.0 - c) * out[i] + c * y[i];
    return out;
  }

  const TextWeights& w_;
  const TextConfig& c_;
};

struct Outcome {
  std::vector<float> logits;  // [T, V]
  std::map<std::pair<TapPoint, int64_t>, std::vector<float>> taps;
};

class Recorder : public TapSink {
 public:
  explicit Recorder(Outcome& run) : run_(run) {}
  void Tap(TapPoint point, int64_t layer, const Tensor& values) override {
    const auto* p = static_cast<const float*>(values.data);
    EXPECT_TRUE(
        run_.taps.emplace(std::pair(point, layer), std::vector(p, p + values.size())).second);
  }

 private:
  Outcome& run_;
};

Outcome RunModel(const TextWeights& weights, const TextBatch& batch, int64_t num_tokens) {
  Queue queue(1);
  const TextConfig& c = weights.config;
  TextState state(c, Shard::Whole(c), {.num_slots = 1, .max_tokens = num_tokens});
  const int32_t slot = *state.Open();
  EXPECT_TRUE(state.Reserve(slot, num_tokens).ok());
  Outcome run;
  Recorder recorder(run);
  std::vector<float> hidden(static_cast<size_t>(num_tokens * c.hidden_size));
  run.logits.resize(static_cast<size_t>(num_tokens * c.vocab_size));
  const TextModel model{.queue = queue, .weights = weights, .state = state, .taps = &recorder};
  Forward(model, batch, Tensor(hidden.data(), {num_tokens, c.hidden_size}));
  Logits(model, Tensor(hidden.data(), {num_tokens, c.hidden_size}),
         Tensor(run.logits.data(), {num_tokens, c.vocab_size}));
  return run;
}

TextWeights TinyWeights(const TextConfig& config) {
  const TempFolder folder;
  WriteTinyModel(folder.path(), config);
  Queue queue(1);
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
  Check(checkpoint.ok(), checkpoint.status().message());
  return LoadWeights(queue, *checkpoint, config, {}, Shard::Whole(config)).value();
}

void ExpectEqualsReference(const TextConfig& config) {
  ASSERT_TRUE(config.Validate().ok()) << config.Validate().message();
  const TextWeights weights = TinyWeights(config);
  const std::vector<int32_t> ids = TinyTokens(70, config.vocab_size);  // past a border of the grid
  const Outcome run = RunModel(weights, {.ids = ids, .sequences = {{0, 70}}}, 70);
  Row want;
  for (const Row& row : ReferenceModel(weights).Logits(ids)) {
    want.insert(want.end(), row.begin(), row.end());
  }
  EXPECT_LE(RelativeError(run.logits, want), 2e-6);
}

TEST(ForwardTest, EqualsTheSameInDouble) {
  ExpectEqualsReference(TinyConfig());
}

TEST(ForwardTest, WithoutPostNormTheResidualCarriesTheSum) {
  TextConfig config = TinyConfig();
  config.post_norm = false;
  ExpectEqualsReference(config);
}

TEST(ForwardTest, EachKindOfLayerHasItsOwnResidual) {
  TextConfig config = TinyConfig();
  config.softmax_residual = {.alpha = 1.1, .beta = 0.7};
  config.lightning_residual = {.alpha = 1.3, .beta = 0.5};
  config.mlp_residual = {.alpha = 0.9, .beta = 1.4};
  ExpectEqualsReference(config);
}

TEST(ForwardTest, ADenseFfnTakesThePlaceOfTheExperts) {
  TextConfig config = TinyConfig();
  config.num_experts = 0;
  config.num_experts_per_token = 0;
  ExpectEqualsReference(config);
}

TEST(ForwardTest, ASharedExpertIsBlendedIn) {
  TextConfig config = TinyConfig();
  config.shared_ffn_size = 40;
  ExpectEqualsReference(config);
}

TEST(ForwardTest, TiedEmbeddingsAreTheHead) {
  TextConfig config = TinyConfig();
  config.tied_embeddings = true;
  ExpectEqualsReference(config);
}

TEST(ForwardTest, SizesNeedNotBeMultiplesOfAnything) {
  TextConfig config = TinyConfig();
  config.hidden_size = 50;
  config.vocab_size = 101;
  config.ffn_size = 37;
  config.num_heads = 3;
  config.num_kv_heads = 1;
  config.num_experts = 5;
  config.num_experts_per_token = 3;
  config.rotary_dim = 6;
  ExpectEqualsReference(config);
}

TEST(ForwardTest, SoftmaxLayersAlone) {
  TextConfig config = TinyConfig();
  config.layers = {LayerKind::kSoftmax, LayerKind::kSoftmax};
  config.num_kv_heads = 1;
  config.rotary_dim = 16;
  ExpectEqualsReference(config);
}

TEST(ForwardTest, LightningLayersAlone) {
  TextConfig config = TinyConfig();
  config.layers = {LayerKind::kLightning, LayerKind::kLightning, LayerKind::kLightning};
  config.rotary_dim = 0;
  ExpectEqualsReference(config);
}

TEST(ForwardTest, OneLayerAndOneExpert) {
  TextConfig config = TinyConfig();
  config.layers = {LayerKind::kSoftmax};
  config.num_experts = 1;
  config.num_experts_per_token = 1;
  ExpectEqualsReference(config);
}

TEST(ForwardTest, RowsOfEmbeddingsStandForTokens) {
  const TextConfig config = TinyConfig();
  const TextWeights weights = TinyWeights(config);
  std::vector<float> rows(2 * 64);
  weights.embedding.GetRow(11, std::span(rows).first(64));
  weights.embedding.GetRow(5, std::span(rows).last(64));
  const Outcome ids = RunModel(weights, {.ids = {3, 5, 11, 7}, .sequences = {{0, 4}}}, 4);
  const Outcome mixed = RunModel(
      weights,
      {.ids = {3, -2, -1, 7}, .embeddings = Tensor(rows.data(), {2, 64}), .sequences = {{0, 4}}},
      4);
  EXPECT_TRUE(SameBits(mixed.logits, ids.logits));
}

TEST(ForwardTest, TapsSeeEveryNamedPointOnce) {
  const TextWeights weights = TinyWeights(TinyConfig());
  const Outcome run = RunModel(weights, {.ids = {3, 5}, .sequences = {{0, 2}}}, 2);
  EXPECT_EQ(run.taps.size(), 2u + 4u + 4u);
  EXPECT_EQ(run.taps.at({TapPoint::kRouterLogits, 3}).size(), 2u * 4u);
  EXPECT_EQ(run.taps.at({TapPoint::kLayerOutput, 0}).size(), 2u * 64u);
  std::vector<float> row(64);
  weights.embedding.GetRow(3, row);
  const std::vector<float>& embedded = run.taps.at({TapPoint::kEmbedding, -1});
  EXPECT_TRUE(SameBits(std::vector(embedded.begin(), embedded.begin() + 64), row));
}

TEST(ForwardTest, RowsOfTheHeadThatAreNoTokensNeverWin) {
  TextWeights weights = TinyWeights(TinyConfig());
  const Outcome all = RunModel(weights, {.ids = {3}, .sequences = {{0, 1}}}, 1);
  weights.vocab_used = 90;
  const Outcome some = RunModel(weights, {.ids = {3}, .sequences = {{0, 1}}}, 1);
  for (size_t v = 0; v < 96; ++v) {
    EXPECT_EQ(some.logits[v], v < 90 ? all.logits[v] : -std::numeric_limits<float>::infinity());
  }
}

}  // namespace
}  // namespace mm01
