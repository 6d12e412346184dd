#include "eval/bench_cpu.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>

#include "base/rng.h"
#include "eval/ceilings.h"
#include "infer/session.h"
#include "planner/flops.h"
#include "planner/memory.h"

namespace mm01::eval {
namespace {

using infer::Engine;
using infer::EngineOptions;
using infer::Session;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string CpuName() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::vector<int32_t> RandomTokens(int64_t count, int64_t vocabulary) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(RandomBits(3, 0, static_cast<uint64_t>(i)) %
                                          static_cast<uint64_t>(vocabulary)));
  }
  return tokens;
}

// Read at once and one by one, a prompt must give the same bits.
void CheckAnswer(Engine& engine) {
  const std::vector<int32_t> tokens = RandomTokens(70, engine.config().vocab_size);
  Result<Session> whole = Session::Open(engine);
  Check(whole.ok() && whole->Read(tokens).ok(), "the prompt does not fit");
  const std::vector<float> logits(whole->logits().begin(), whole->logits().end());
  Result<Session> single = Session::Open(engine);
  Check(single.ok(), "two sequences do not fit");
  for (int32_t t : tokens) Check(single->Read({&t, 1}).ok(), "the prompt does not fit");
  Check(std::memcmp(logits.data(), single->logits().data(), logits.size() * sizeof(float)) == 0,
        "prefill and decode differ");
}

// The median time of a step of one token, in seconds.
double DecodeSeconds(Session& session, int steps) {
  std::vector<double> seconds;
  for (int i = 0; i < steps; ++i) {
    const auto token = static_cast<int32_t>(i % session.engine().config().vocab_size);
    const double start = Now();
    Check(session.Read({&token, 1}).ok(), "no room for a token");
    seconds.push_back(Now() - start);
  }
  std::ranges::nth_element(seconds, seconds.begin() + steps / 2);
  return seconds[static_cast<size_t>(steps / 2)];
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

EngineOptions OptionsFor(int threads, int64_t context) {
  return {
      .num_threads = threads, .context_tokens = context, .num_sequences = 2, .prefill_rows = 1024};
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
  const auto add = [&](BenchLine line) {
    report.lines.push_back(line);
    if (on_line) on_line(line);
  };
  const int64_t prompt = options.brief ? 256 : 2048;
  const int steps = options.brief ? 5 : 31;
  Queue queue(threads);

  // Ceilings are taken right before what they are held against: machines change speed.
  const auto gemm_ceiling = [&] {
    return LibraryGemm(threads, prompt, config.hidden_size, config.hidden_size,
                       options.brief ? 3 : 10);
  };
  const auto read_ceiling = [&] {
    return ReadBandwidth(queue, int64_t{options.brief ? 64 : 1024} << 20);
  };

  {
    const GemmCeiling before = gemm_ceiling();
    const auto engine = Engine::Random(config, {DType::kF32, 0}, OptionsFor(threads, prompt + 64));
    CheckAnswer(*engine);
    const std::vector<int32_t> tokens = RandomTokens(prompt, config.vocab_size);
    double best = 1e30;
    for (int repeat = 0; repeat < (options.brief ? 1 : 3); ++repeat) {
      MM01_ASSIGN_OR_RETURN(Session session, Session::Open(*engine));
      const double start = Now();
      MM01_RETURN_IF_ERROR(session.Read(tokens));
      best = std::min(best, Now() - start);
    }
    const GemmCeiling after = gemm_ceiling();
    const GemmCeiling& ceiling = before.flops_per_second > after.flops_per_second ? before : after;
    const double flops = PrefillFlops(config, prompt);
    add({fmt::format("prefill of {} tokens, float32", prompt), flops / best / 1e9, "GFLOP/s",
         ceiling.flops_per_second / 1e9,
         "GEMM of " + (ceiling.library.empty() ? "no library" : ceiling.library)});
    add({"prefill speed", static_cast<double>(prompt) / best, "tokens/s", 0.0, ""});
  }
  for (const WeightType type : {WeightType{DType::kBF16, 0}, WeightType{DType::kI8, 128}}) {
    const auto engine = Engine::Random(config, type, OptionsFor(threads, 1024));
    CheckAnswer(*engine);
    MM01_ASSIGN_OR_RETURN(Session session, Session::Open(*engine));
    MM01_RETURN_IF_ERROR(session.Read(RandomTokens(128, config.vocab_size)));
    const double before = read_ceiling();
    const double seconds = DecodeSeconds(session, steps);
    const double ceiling = std::max(before, read_ceiling());
    const BytesTouched bytes =
        BytesTouchedPerToken(config, type, engine->state().kv_type(), session.length());
    const double rate = static_cast<double>(bytes.total()) / seconds;
    add({"decode, " + ToString(type.dtype) + " weights", rate / 1e9, "GB/s", ceiling / 1e9,
         "reading by all cores"});
    add({"decode speed, " + ToString(type.dtype) + " weights", 1.0 / seconds, "tokens/s", 0.0, ""});
  }
  if (options.context_model.empty()) return report;

  const int64_t longest = options.brief ? 2000 : 100000;
  MM01_ASSIGN_OR_RETURN(const auto engine,
                        Engine::Load(options.context_model, OptionsFor(threads, longest + 64)));
  CheckAnswer(*engine);
  MM01_ASSIGN_OR_RETURN(Session session, Session::Open(*engine));
  const std::vector<int32_t> tokens = RandomTokens(longest, engine->config().vocab_size);
  MM01_RETURN_IF_ERROR(session.Read(std::span(tokens).first(1000)));
  const double early = DecodeSeconds(session, steps);
  MM01_RETURN_IF_ERROR(
      session.Read(std::span(tokens).subspan(static_cast<size_t>(session.length()))));
  const double ceiling = read_ceiling();
  const double late = DecodeSeconds(session, steps);
  const BytesTouched bytes = BytesTouchedPerToken(engine->config(), *engine->options().weights,
                                                  engine->state().kv_type(), session.length());
  const double allowed = early + static_cast<double>(bytes.kv) / ceiling;
  add({"a token at 1,000 of context", early * 1e3, "ms", 0.0, ""});
  add({fmt::format("a token at {} of context", longest), late * 1e3, "ms", allowed * 1e3,
       "a token at 1,000 and reading the KV cache"});
  return report;
}

}  // namespace mm01::eval
