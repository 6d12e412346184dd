#include "eval/bench_cpu.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "eval/bench_tools.h"
#include "eval/ceilings.h"
#include "infer/session.h"
#include "planner/flops.h"
#include "planner/memory.h"

namespace mm01::eval {
namespace {

using infer::Engine;
using infer::EngineOptions;
using infer::Session;

std::string CpuName() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

// Read at once and one by one, a prompt must give the same bits.
void CheckAnswer(Engine& engine) {
  const std::vector<int32_t> tokens = RandomTokens(0, 70, engine.config().vocab_size);
  Result<Session> whole = Session::Open(engine);
  Check(whole.ok() && whole->Read(tokens).ok(), "the prompt does not fit");
  const std::vector<float> logits(whole->logits().begin(), whole->logits().end());
  Result<Session> single = Session::Open(engine);
  Check(single.ok(), "two sequences do not fit");
  for (int32_t t : tokens) Check(single->Read({&t, 1}).ok(), "the prompt does not fit");
  Check(std::memcmp(logits.data(), single->logits().data(), logits.size() * sizeof(float)) == 0,
        "prefill and decode differ");
}

// The shortest of some steps of one token, in seconds.
double DecodeSeconds(Session& session, int steps) {
  double best = 1e30;
  for (int i = 0; i < steps; ++i) {
    const auto token = static_cast<int32_t>(i % session.engine().config().vocab_size);
    const double start = Now();
    Check(session.Read({&token, 1}).ok(), "no room for a token");
    best = std::min(best, Now() - start);
  }
  return best;
}

struct Round {
  double value, ceiling;
  double early = 0.0;  // seconds of a token at the start, where the ceiling counts from it
  double share() const { return value / ceiling; }
};

// Machines change speed, so a measurement and its ceiling are taken side by side, the best of a few
// tries of each, several times over. The median round by its share.
Round MedianRound(int rounds, const std::function<Round()>& measure) {
  std::vector<Round> all;
  for (int i = 0; i < rounds; ++i) all.push_back(measure());
  std::ranges::nth_element(all, all.begin() + rounds / 2, {}, &Round::share);
  return all[static_cast<size_t>(rounds / 2)];
}

// A prompt read from the start, with the logits of its last token.
double PrefillFlops(const TextConfig& config, int64_t tokens) {
  double flops = FlopsPerToken(config, tokens).head;
  for (int64_t n = 1; n <= tokens; ++n) {
    const Flops f = FlopsPerToken(config, n);
    flops += f.total() - f.head;
  }
  return flops;
}

struct Bench {
  const BenchOptions& options;
  int threads;
  const ReadCeiling& reading;
  std::function<void(const BenchLine&)> add;

  int rounds() const { return options.brief ? 1 : 9; }
  int steps() const { return options.brief ? 2 : 6; }
  EngineOptions EngineFor(int64_t context) const {
    return {.num_threads = threads,
            .context_tokens = context,
            .num_sequences = 2,
            .prefill_rows = 1024};
  }
};

void Prefill(const Bench& bench, const TextConfig& config) {
  const bool brief = bench.options.brief;
  const int64_t prompt = brief ? 256 : 2048;
  const auto engine = Engine::Random(config, {DType::kF32, 0}, bench.EngineFor(prompt + 64));
  CheckAnswer(*engine);
  const std::vector<int32_t> tokens = RandomTokens(0, prompt, config.vocab_size);
  const double flops = PrefillFlops(config, prompt);
  std::string library;
  const Round round = MedianRound(brief ? 1 : 3, [&] {
    const GemmCeiling ceiling =
        LibraryGemm(bench.threads, prompt, config.hidden_size, config.hidden_size, brief ? 3 : 10);
    library = ceiling.library;
    Result<Session> session = Session::Open(*engine);
    Check(session.ok(), "the prompt does not fit");
    const double start = Now();
    Check(session->Read(tokens).ok(), "the prompt does not fit");
    return Round{flops / (Now() - start), ceiling.flops_per_second};
  });
  bench.add({fmt::format("prefill of {} tokens, float32", prompt), round.value / 1e9, "GFLOP/s",
             round.ceiling / 1e9, "GEMM of " + (library.empty() ? "no library" : library)});
  bench.add(
      {"prefill speed", round.value / flops * static_cast<double>(prompt), "tokens/s", 0.0, ""});
}

Status Decode(const Bench& bench, const TextConfig& config, const WeightType& type) {
  const auto engine = Engine::Random(config, type, bench.EngineFor(1024));
  CheckAnswer(*engine);
  MM01_ASSIGN_OR_RETURN(Session session, Session::Open(*engine));
  MM01_RETURN_IF_ERROR(session.Read(RandomTokens(0, 128, config.vocab_size)));
  const auto bytes = static_cast<double>(
      BytesTouchedPerToken(config, type, engine->state().kv_type(), session.length()).total());
  const Round round = MedianRound(bench.rounds(), [&] {
    const double ceiling = bench.reading.Measure();
    return Round{bytes / DecodeSeconds(session, bench.steps()), ceiling};
  });
  bench.add({"decode, " + ToString(type.dtype) + " weights", round.value / 1e9, "GB/s",
             round.ceiling / 1e9, "reading by all cores"});
  bench.add({"decode speed, " + ToString(type.dtype) + " weights", round.value / bytes, "tokens/s",
             0.0, ""});
  return Status::Ok();
}

Status Context(const Bench& bench) {
  const int64_t longest = bench.options.brief ? 2000 : 100000;
  MM01_ASSIGN_OR_RETURN(const auto engine,
                        Engine::Load(bench.options.context_model, bench.EngineFor(longest + 128)));
  CheckAnswer(*engine);
  const std::vector<int32_t> tokens = RandomTokens(0, longest, engine->config().vocab_size);
  MM01_ASSIGN_OR_RETURN(Session near, Session::Open(*engine));
  MM01_ASSIGN_OR_RETURN(Session far, Session::Open(*engine));
  MM01_RETURN_IF_ERROR(near.Read(std::span(tokens).first(1000)));
  MM01_RETURN_IF_ERROR(far.Read(tokens));
  const auto kv_bytes =
      static_cast<double>(BytesTouchedPerToken(engine->config(), *engine->options().weights,
                                               engine->state().kv_type(), far.length())
                              .kv);
  const Round round = MedianRound(bench.rounds(), [&] {
    const double bandwidth = bench.reading.Measure();
    const double early = DecodeSeconds(near, bench.steps());
    return Round{DecodeSeconds(far, bench.steps()), early + kv_bytes / bandwidth, early};
  });
  bench.add({"a token at 1,000 of context", round.early * 1e3, "ms", 0.0, ""});
  bench.add({fmt::format("a token at {} of context", longest), round.value * 1e3, "ms",
             round.ceiling * 1e3, "a token at 1,000 and reading the KV cache"});
  return Status::Ok();
}

}  // namespace

TextConfig BenchConfig(bool brief) {
  TextConfig c;
  c.vocab_size = brief ? 1024 : 32000;
  c.hidden_size = brief ? 256 : 2048;
  c.num_heads = brief ? 2 : 16;
  c.num_kv_heads = brief ? 1 : 4;
  c.head_dim = 128;
  c.rotary_dim = 64;
  c.ffn_size = brief ? 256 : 3584;
  c.num_experts = 8;
  c.num_experts_per_token = 2;
  c.layers.assign(8, LayerKind::kLightning);
  c.layers.back() = LayerKind::kSoftmax;
  c.softmax_residual.alpha = c.lightning_residual.alpha = c.mlp_residual.alpha =
      2.0;  // (2 * 8)^1/4
  c.max_positions = 1 << 20;
  return c;
}

Result<BenchReport> BenchCpu(const BenchOptions& options,
                             const std::function<void(const BenchLine&)>& on_line) {
  const TextConfig config = BenchConfig(options.brief);
  const int threads = options.num_threads > 0 ? options.num_threads : infer::AvailableCores();
  BenchReport report{
      .cpu = CpuName(), .num_threads = threads, .parameters = CountParameters(config).total};
  Queue queue(threads);
  const ReadCeiling reading(queue, int64_t{options.brief ? 64 : 512} << 20);
  const Bench bench{options, threads, reading, [&](const BenchLine& line) {
                      report.lines.push_back(line);
                      if (on_line) on_line(line);
                    }};
  Prefill(bench, config);
  MM01_RETURN_IF_ERROR(Decode(bench, config, {DType::kBF16, 0}));
  MM01_RETURN_IF_ERROR(Decode(bench, config, {DType::kI8, 128}));
  if (!options.context_model.empty()) MM01_RETURN_IF_ERROR(Context(bench));
  return report;
}

}  // namespace mm01::eval
