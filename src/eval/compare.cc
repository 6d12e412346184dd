#include "eval/compare.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>

#include "infer/generate.h"
#include "io/safetensors.h"
#include "kernels/sample/sample.h"

namespace mm01::eval {
namespace {

using Floats = std::vector<float>;

// What one run of the model over input_ids leaves behind, under the reference's names.
struct Ours {
  std::map<std::string, Floats> values;
  Floats logits;  // [N T, V]
};

class Collector : public TapSink {
 public:
  Collector(Ours& ours, int64_t num_layers) : ours_(ours), num_layers_(num_layers) {}

  void Tap(TapPoint point, int64_t layer, const Tensor& values) override {
    switch (point) {
      case TapPoint::kEmbedding:
        return Append("hidden.0", values);
      case TapPoint::kRouterLogits:
        return Append(fmt::format("router.{}", layer), values);
      case TapPoint::kLayerOutput:
        if (layer + 1 < num_layers_) Append(fmt::format("hidden.{}", layer + 1), values);
        return;
      case TapPoint::kFinalNorm:
        return Append(fmt::format("hidden.{}", num_layers_), values);
    }
  }

 private:
  void Append(const std::string& name, const Tensor& values) {
    const float* p = static_cast<const float*>(values.data);
    Floats& all = ours_.values[name];
    all.insert(all.end(), p, p + values.size());
  }

  Ours& ours_;
  int64_t num_layers_;
};

Status RunModel(infer::Engine& engine, const Reference& r, Ours& ours) {
  const int64_t width = engine.config().hidden_size, vocabulary = engine.config().vocab_size;
  Collector taps(ours, engine.config().num_layers());
  for (int64_t n = 0; n < r.num_sequences; ++n) {
    MM01_ASSIGN_OR_RETURN(const int32_t slot, engine.state().Open());
    if (const Status room = engine.state().Reserve(slot, r.length); !room.ok()) {
      engine.state().Close(slot);
      return room;
    }
    Scratch scratch(engine.queue());
    const Tensor hidden = scratch.GetRows(engine.weights().activations(), r.length, width);
    Forward(engine.model(&taps), {.ids = r.Sequence(n), .sequences = {{slot, r.length}}}, hidden);
    const size_t at = ours.logits.size();
    ours.logits.resize(at + static_cast<size_t>(r.length * vocabulary));
    LogitsToHost(engine.model(), hidden, std::span(ours.logits).subspan(at));
    engine.state().Close(slot);
  }
  return Status::Ok();
}

Comparison Equal(const std::string& name, std::span<const int32_t> ours,
                 std::span<const int64_t> theirs) {
  Comparison c{.name = name, .exact = true, .num_values = static_cast<int64_t>(theirs.size())};
  for (size_t i = 0; i < theirs.size(); ++i)
    c.num_unequal += i >= ours.size() || ours[i] != theirs[i];
  c.ok = c.num_unequal == 0;
  return c;
}

Result<std::vector<int32_t>> Greedy(infer::Engine& engine, std::span<const int32_t> prompt,
                                    int64_t count) {
  MM01_ASSIGN_OR_RETURN(infer::Session session, infer::Session::Open(engine));
  MM01_RETURN_IF_ERROR(session.Read(prompt));
  infer::GenerateOptions options{.max_tokens = count, .ignore_end = true};
  options.sampling.temperature = 0.0;
  MM01_ASSIGN_OR_RETURN(infer::GenerateResult result, infer::Generate(session, options));
  return result.tokens;
}

class Comparer {
 public:
  Comparer(infer::Engine& engine, const Reference& reference, const Ours& ours, double tolerance)
      : engine_(engine), r_(reference), ours_(ours), tolerance_(tolerance) {}

  // False where the tensor is of no known name.
  Result<bool> Add(const TensorInfo& info, CompareReport& report) {
    const std::string& name = info.name;
    Result<Comparison> c = Status::NotFound("");
    if (name == "logits") {
      c = CompareLogits(info);
    } else if (const auto it = ours_.values.find(name); it != ours_.values.end()) {
      c = CompareFloats(info, it->second);
    } else if (name == "top_values" || name == "logsumexp" || name == "nll") {
      c = CompareFloats(info, FromLogits(info));
      if (name == "nll") MM01_RETURN_IF_ERROR(MeanNll(info, report));
    } else if (name == "top_ids") {
      c = CompareTopIds(info);
    } else if (name == "generated" || name == "greedy_from_200") {
      c = CompareGreedy(info);
    } else {
      return false;
    }
    if (!c.ok()) return c.status();
    report.tensors.push_back(std::move(*c));
    return true;
  }

 private:
  std::span<const float> Row(int64_t row) const {
    const auto v = static_cast<size_t>(engine_.config().vocab_size);
    return std::span(ours_.logits).subspan(static_cast<size_t>(row) * v, v);
  }
  int64_t num_rows() const { return r_.num_sequences * r_.length; }

  Status Misshapen(const TensorInfo& info, size_t wanted) const {
    return Status::Invalid(fmt::format("{}: {} has {} values, the model gives {}", r_.file.path(),
                                       info.name, info.num_elements(), wanted));
  }

  Result<Comparison> CompareFloats(const TensorInfo& info, std::span<const float> ours) const {
    MM01_ASSIGN_OR_RETURN(const Floats theirs, r_.file.ReadAll<float>(info));
    if (theirs.size() != ours.size()) return Misshapen(info, ours.size());
    return Differ(info.name, ours, theirs, tolerance_);
  }

  Result<Comparison> CompareLogits(const TensorInfo& info) const {
    const TensorInfo* positions = r_.file.Find("logits_positions");
    if (!positions) return CompareFloats(info, ours_.logits);
    MM01_ASSIGN_OR_RETURN(const auto at, ReadIntegers(r_.file, *positions));
    Floats some;
    for (int64_t n = 0; n < r_.num_sequences; ++n) {
      for (int64_t p : at) {
        if (p < 0 || p >= r_.length) {
          return Status::Invalid(fmt::format("{}: logits_positions holds {}, wanted 0 to {}",
                                             r_.file.path(), p, r_.length - 1));
        }
        const auto row = Row(n * r_.length + p);
        some.insert(some.end(), row.begin(), row.end());
      }
    }
    return CompareFloats(info, some);
  }

  // top_values, logsumexp or nll, one or more numbers for each position.
  Floats FromLogits(const TensorInfo& info) const {
    Floats out;
    const int64_t rows = num_rows();
    const int64_t each = std::max<int64_t>(1, info.num_elements() / rows);
    for (int64_t row = 0; row < rows; ++row) {
      if (info.name == "top_values") {
        for (const TokenLogprob& t : TopLogprobs(Row(row), static_cast<int>(each))) {
          out.push_back(Row(row)[static_cast<size_t>(t.id)]);
        }
      } else if (info.name == "logsumexp") {
        out.push_back(static_cast<float>(LogSumExp(Row(row))));
      } else if ((row + 1) % r_.length != 0) {
        const auto next = static_cast<size_t>(r_.ids[static_cast<size_t>(row + 1)]);
        out.push_back(
            static_cast<float>(LogSumExp(Row(row)) - static_cast<double>(Row(row)[next])));
      }
    }
    return out;
  }

  Status MeanNll(const TensorInfo& info, CompareReport& report) const {
    const Floats nll = FromLogits(info);
    report.mean_nll =
        std::accumulate(nll.begin(), nll.end(), 0.0) / static_cast<double>(nll.size());
    return Status::Ok();
  }

  // Two ids may change places where their logits differ by less than the tolerance.
  Result<Comparison> CompareTopIds(const TensorInfo& info) const {
    MM01_ASSIGN_OR_RETURN(auto theirs, ReadIntegers(r_.file, info));
    const auto each = static_cast<size_t>(info.num_elements() / num_rows());
    std::vector<int32_t> ours;
    for (int64_t row = 0; row < num_rows(); ++row) {
      for (const TokenLogprob& t : TopLogprobs(Row(row), static_cast<int>(each))) {
        int64_t& theirs_here = theirs[ours.size()];
        const bool in_range = 0 <= theirs_here && theirs_here < engine_.config().vocab_size;
        const auto mine = static_cast<double>(Row(row)[static_cast<size_t>(t.id)]);
        const double other =
            in_range ? static_cast<double>(Row(row)[static_cast<size_t>(theirs_here)]) : INFINITY;
        if (std::abs(mine - other) <= tolerance_ * std::abs(mine)) theirs_here = t.id;
        ours.push_back(t.id);
      }
    }
    return Equal(info.name, ours, theirs);
  }

  Result<Comparison> CompareGreedy(const TensorInfo& info) const {
    MM01_ASSIGN_OR_RETURN(const auto theirs, ReadIntegers(r_.file, info));
    const int64_t rows = info.name == "generated" ? r_.num_sequences : 1;
    const auto count = static_cast<int64_t>(theirs.size()) / std::max<int64_t>(1, rows);
    std::vector<int32_t> ours;
    for (int64_t n = 0; n < rows; ++n) {
      std::vector<int32_t> prompt = r_.Sequence(n);
      if (info.name == "greedy_from_200") prompt.resize(std::min<size_t>(200, prompt.size()));
      const bool with_prompt = count > r_.length && std::equal(r_.ids.begin() + n * r_.length,
                                                               r_.ids.begin() + (n + 1) * r_.length,
                                                               theirs.begin() + n * count);
      const int64_t fresh = with_prompt ? count - r_.length : count;
      MM01_ASSIGN_OR_RETURN(const auto tokens, Greedy(engine_, prompt, fresh));
      if (with_prompt) ours.insert(ours.end(), prompt.begin(), prompt.end());
      ours.insert(ours.end(), tokens.begin(), tokens.end());
    }
    return Equal(info.name, ours, theirs);
  }

  infer::Engine& engine_;
  const Reference& r_;
  const Ours& ours_;
  double tolerance_;
};

// Where in the forward pass a tensor stands: hidden.i, then layer i's router, ..., logits, what is
// made of them, and last what is generated.
std::pair<int64_t, int> Place(const std::string& name) {
  constexpr int64_t kEnd = int64_t{1} << 40;
  const size_t dot = name.find('.');
  int64_t layer = 0;
  if (dot != std::string::npos)
    std::from_chars(name.data() + dot + 1, name.data() + name.size(), layer);
  if (name.starts_with("hidden.")) return {layer, 0};
  if (name.starts_with("router.")) return {layer, 1};
  if (name == "logits") return {kEnd, 0};
  return {kEnd, name.starts_with("gen") || name.starts_with("greedy") ? 2 : 1};
}

}  // namespace

Result<CompareReport> Compare(infer::Engine& engine, const std::string& reference_path,
                              double tolerance) {
  MM01_ASSIGN_OR_RETURN(const Reference reference, OpenReference(reference_path, engine.config()));
  Ours ours;
  MM01_RETURN_IF_ERROR(RunModel(engine, reference, ours));

  std::vector<TensorInfo> tensors = reference.file.tensors();
  std::ranges::stable_sort(tensors, [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(Place(a.name), a.name) < std::pair(Place(b.name), b.name);
  });
  CompareReport report;
  Comparer comparer(engine, reference, ours, tolerance);
  for (const TensorInfo& info : tensors) {
    if (info.name == "input_ids" || info.name == "logits_positions") continue;
    MM01_ASSIGN_OR_RETURN(const bool known, comparer.Add(info, report));
    if (!known) report.not_compared.push_back(info.name);
  }
  report.Judge();
  return report;
}

}  // namespace mm01::eval
