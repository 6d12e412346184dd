#include "eval/bench_gpu/bench_gpu.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "infer/engine.h"

namespace mm01::gpu {
namespace {

double SecondsOf(Queue& queue, const std::function<void()>& work) {
  queue.Wait();
  const auto begin = std::chrono::steady_clock::now();
  work();
  queue.Wait();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Tokens a second of a model from a folder, reading and writing, logits and sampling included in
// neither.
Status BenchModel(Harness& h, const std::string& path) {
  constexpr int64_t kPrompt = 32768, kSequences = 256, kSteps = 64;
  MM01_ASSIGN_OR_RETURN(const auto engine,
                        infer::Engine::Load(path, {.weights = WeightType{DType::kBF16, 0},
                                                   .device = Device::kCuda,
                                                   .context_tokens = 2048,
                                                   .num_sequences = kSequences,
                                                   .prefill_rows = kPrompt}));
  TextState& state = engine->state();
  Queue& queue = engine->queue();
  const auto open = [&](int64_t tokens) {
    const int32_t slot = *state.Open();
    const Status room = state.Reserve(slot, tokens);
    Check(room.ok(), room.message());
    return slot;
  };
  const auto tokens = [&](int64_t n) {
    std::vector<int32_t> ids(static_cast<size_t>(n));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 7 % 4096);
    return ids;
  };
  for (int pass = 0; pass < 2; ++pass) {  // the first warms up
    const int32_t slot = open(kPrompt);
    Scratch scratch(queue);
    const Tensor hidden =
        scratch.GetRows(engine->weights().activations(), kPrompt, engine->config().hidden_size);
    const TextBatch batch{.ids = tokens(kPrompt), .sequences = {{slot, kPrompt}}};
    const double t = SecondsOf(queue, [&] { Forward(engine->model(), batch, hidden); });
    state.Close(slot);
    if (pass == 1) {
      h.Add({.name = "nano_prefill_tokens_s", .value = kPrompt / t, .unit = "tokens/s"});
    }
  }
  for (const int64_t sequences : {1, 16, 256}) {
    TextBatch batch{.ids = tokens(sequences)};
    for (int64_t n = 0; n < sequences; ++n) batch.sequences.push_back({open(kSteps + 3), 1});
    Scratch scratch(queue);
    const Tensor hidden =
        scratch.GetRows(engine->weights().activations(), sequences, engine->config().hidden_size);
    const auto step = [&] { Forward(engine->model(), batch, hidden); };
    for (int i = 0; i < 3; ++i) step();
    const double t = SecondsOf(queue, [&] {
      for (int64_t i = 0; i < kSteps; ++i) step();
    });
    for (const auto& s : batch.sequences) state.Close(s.slot);
    h.Add({.name = fmt::format("nano_decode_tokens_s_b{}", sequences),
           .value = static_cast<double>(sequences * kSteps) / t,
           .unit = "tokens/s"});
  }
  return Status::Ok();
}

}  // namespace

Result<Report> Bench(const Options& options, const std::function<void(const std::string&)>& say) {
  using Part = void (*)(Harness&);
  constexpr Part kRun[] = {
      BenchLightning, BenchLightningBackward, BenchAttention, BenchMoe, BenchDense,
      BenchBlock,     BenchTrainLayers,       BenchTrain};
  for (const std::string& part : options.parts) {
    if (std::ranges::find(kParts, part) != std::end(kParts)) continue;
    return Status::Invalid(
        fmt::format("'{}' is no part of the bench, wanted: {}", part, fmt::join(kParts, ", ")));
  }
  MM01_ASSIGN_OR_RETURN(const CudaInfo gpu, FindCuda());
  Queue queue(infer::AvailableCores(), Device::kCuda);
  Harness h(queue, say);
  for (size_t i = 0; i < std::size(kParts); ++i) {
    const auto& wanted = options.parts;
    if (!wanted.empty() && std::ranges::find(wanted, kParts[i]) == wanted.end()) continue;
    kRun[i](h);
  }
  if (!options.model.empty()) MM01_RETURN_IF_ERROR(BenchModel(h, options.model));
  return Report{.device = gpu.name, .rows = h.rows()};
}

}  // namespace mm01::gpu
