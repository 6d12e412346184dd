// Eight layers at Text-01's shapes, seven lightning and one softmax: prefill, decode, and the same
// with softmax in all eight.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "eval/bench_gpu/harness.h"
#include "eval/bench_tools.h"
#include "infer/engine.h"
#include "planner/flops.h"
#include "planner/memory.h"

namespace mm01::gpu {
namespace {

constexpr double kPeakTflops = 989;  // dense bf16 of an H100 or H200, by the datasheet
constexpr int64_t kChunk = 16384;    // rows of a prefill step

TextConfig BlockConfig(int64_t num_layers, bool hybrid) {
  std::vector<LayerKind> layers(static_cast<size_t>(num_layers),
                                hybrid ? LayerKind::kLightning : LayerKind::kSoftmax);
  layers.back() = LayerKind::kSoftmax;
  return eval::Text01Layers(std::move(layers), 512);
}

std::vector<int32_t> Tokens(int64_t count) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(RandomBits(5, 0, static_cast<uint64_t>(i)) % 512));
  }
  return ids;
}

class Block {
 public:
  Block(Harness& h, const TextConfig& config, WeightType type, int64_t context, int64_t sequences)
      : h_(h),
        engine_(infer::Engine::Random(config, type,
                                      {.device = Device::kCuda,
                                       .context_tokens = context,
                                       .num_sequences = sequences,
                                       .prefill_rows = kChunk})) {
    FillKv();
  }

  // Seconds of a step of `rows` for each of `sequences` that hold `position` tokens of arbitrary
  // contents; the mean of `steps`. Steps of one row follow each other, longer ones all begin at
  // `position`.
  double Step(int64_t sequences, int64_t rows, int64_t position, int64_t steps) {
    TextState& state = engine_->state();
    TextBatch batch{.ids = Tokens(sequences * rows)};
    const bool again = rows > 1;
    Open(sequences, rows, position, again ? 1 : steps + kWarmUp, batch);
    Queue& queue = engine_->queue();
    double seconds = 0;
    {
      Scratch scratch(queue);
      const Tensor hidden = scratch.GetRows(engine_->weights().activations(), sequences * rows,
                                            engine_->config().hidden_size);
      const auto step = [&] {
        Forward(engine_->model(), batch, hidden);
        if (!again) return;
        for (const auto& s : batch.sequences) state.Close(s.slot);
        Open(sequences, rows, position, 1, batch);
      };
      for (int64_t i = 0; i < kWarmUp; ++i) step();
      queue.Wait();
      const auto begin = std::chrono::steady_clock::now();
      for (int64_t i = 0; i < steps; ++i) step();
      queue.Wait();
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
      seconds = time.count() / static_cast<double>(steps);
    }
    for (const auto& s : batch.sequences) state.Close(s.slot);
    return seconds;
  }

  // Seconds of reading n tokens in steps of kChunk. A step costs what its position says, in a
  // straight line: where there are many, five places are measured and the rest lies between.
  double Prefill(int64_t n) {
    const int64_t rows = std::min(n, kChunk), steps = n / rows;
    if (steps <= 5) {
      double sum = 0;
      for (int64_t i = 0; i < steps; ++i) sum += Step(1, rows, i * rows, 3);
      return sum;
    }
    double mean = 0;
    for (int64_t i = 0; i <= 4; ++i) {
      mean += Step(1, rows, (steps - 1) * i / 4 * rows, 1) * (i == 0 || i == 4 ? 0.125 : 0.25);
    }
    return mean * static_cast<double>(steps);
  }

  infer::Engine& engine() { return *engine_; }

 private:
  static constexpr int64_t kWarmUp = 3;  // graphs are recorded at the second step

  // Random keys and values: zeros would cost the chip less power than a text does.
  void FillKv() {
    std::vector<bf16> period;
    for (uint64_t i = 0; i < kLongPeriod; ++i) {
      period.push_back(ToBF16(static_cast<float>(RandomNormal(5, 1, i))));
    }
    for (int64_t i = 0; i < engine_->config().num_layers(); ++i) {
      if (engine_->config().layers[static_cast<size_t>(i)] != LayerKind::kSoftmax) continue;
      const PagedKv kv = engine_->state().kv(i);
      for (const Tensor& pool : {kv.k, kv.v}) {
        Repeat(engine_->queue(), pool.data, pool.size(), period);
      }
    }
    engine_->queue().Wait();
  }

  // Sequences that hold `position` tokens, with room for some steps of `rows`.
  void Open(int64_t sequences, int64_t rows, int64_t position, int64_t steps, TextBatch& batch) {
    TextState& state = engine_->state();
    batch.sequences.clear();
    for (int64_t n = 0; n < sequences; ++n) {
      const int32_t slot = *state.Open();
      // Decoding sequences stand at different places of their block.
      const int64_t held = position + (rows == 1 ? n : 0);
      const Status room = state.Reserve(slot, held + rows * steps);
      Check(room.ok(), room.message());
      state.Advance(slot, held);
      batch.sequences.push_back({.slot = slot, .num_rows = rows});
    }
  }

  Harness& h_;
  std::unique_ptr<infer::Engine> engine_;
};

double PrefillFlops(const TextConfig& c, int64_t n) {
  const Flops last = FlopsPerToken(c, n);
  return static_cast<double>(n) * (last.weights + last.lightning + last.softmax / 2);
}

// S and, on average over a block, half of its k and v rows in bf16.
double StateBytes(const TextConfig& c) {
  const auto d = static_cast<double>(c.head_dim);
  return static_cast<double>(c.num_lightning_layers() * c.num_heads) * (d * d * 4 + 2 * 32 * d * 2);
}

// What one step of decoding must read: each expert that some token goes to once.
double DecodeBytes(const TextConfig& c, WeightType type, DType kv, int64_t batch, int64_t context) {
  const BytesTouched one = BytesTouchedPerToken(c, type, kv, context);
  const double per_weight = type.dtype == DType::kI8 ? 1 + 2.0 / static_cast<double>(type.group)
                                                     : static_cast<double>(SizeOf(type.dtype));
  const double expert = 3.0 * static_cast<double>(c.hidden_size * c.ffn_size) * per_weight;
  // Expected number of experts that `batch` tokens of k choices each reach.
  const double e = static_cast<double>(c.num_experts),
               k = static_cast<double>(c.num_experts_per_token);
  const double reached = e * (1 - std::pow(1 - k / e, static_cast<double>(batch)));
  const double layers = static_cast<double>(c.num_layers());
  const double head = static_cast<double>(WeightBytes(type, c.vocab_size, c.hidden_size));
  return static_cast<double>(one.weights) - head + layers * expert * (reached - k) +
         static_cast<double>(batch) * (StateBytes(c) + static_cast<double>(one.kv));
}

void AddPrefill(Harness& h, Block& block, int64_t n, const std::string& suffix,
                std::vector<double>* seconds) {
  const double before = h.HotGemmTflops(), t = block.Prefill(n), after = h.HotGemmTflops();
  const double tflops = PrefillFlops(block.engine().config(), n) / t * 1e-12;
  const double ceiling = (before + after) / 2;
  h.Add({.name = fmt::format("block_share_{}{}", n, suffix),
         .value = tflops,
         .unit = "TFLOP/s",
         .ceiling = ceiling,
         .share = tflops / ceiling});
  h.Say(fmt::format(
      "  {:.2f} ms per 1,024 tokens; 8192^3 right before and after: {:.0f} and {:.0f} "
      "TFLOP/s; of gemm_tflops {:.1f} %",
      t / static_cast<double>(n) * 1024e3, before, after, 100 * tflops / h.gemm_tflops()));
  h.Add({.name = fmt::format("block_mfu_{}{}", n, suffix),
         .value = tflops,
         .unit = "TFLOP/s",
         .ceiling = kPeakTflops,
         .share = tflops / kPeakTflops});
  if (seconds) seconds->push_back(t);
}

void AddDecode(Harness& h, Block& block, int64_t batch, const std::string& suffix) {
  constexpr int64_t kContext = 4096;
  const TextConfig& c = block.engine().config();
  const double t = block.Step(batch, 1, kContext, 64);
  const double bytes = DecodeBytes(c, *block.engine().options().weights,
                                   block.engine().state().kv_type(), batch, kContext);
  const double tb_s = bytes / t * 1e-12;
  h.Add({.name = fmt::format("block_decode_share_b{}{}", batch, suffix),
         .value = tb_s,
         .unit = "TB/s",
         .ceiling = h.copy_tb_s(),
         .share = tb_s / h.copy_tb_s()});
}

}  // namespace

void BenchBlock(Harness& h) {
  const Result<CudaInfo> gpu = FindCuda();
  Check(gpu.ok(), gpu.status().message());
  constexpr int64_t kLong[] = {65536, 262144, 1048576};
  const bool all_fit = gpu->memory_bytes > int64_t{130} << 30;
  const int64_t layers = all_fit ? 8 : 4;
  if (!all_fit) h.Say("the GPU holds 4 of the 8 layers in bf16: 3 lightning and 1 softmax");
  constexpr int64_t kSequences = 64;
  std::vector<double> hybrid;
  {
    Block block(h, BlockConfig(layers, true), {DType::kBF16, 0}, (kLong[2] + kChunk) / 32,
                kSequences);
    AddPrefill(h, block, 8192, "", nullptr);
    for (const int64_t n : kLong) AddPrefill(h, block, n, "", &hybrid);
    AddDecode(h, block, 1, "");
    AddDecode(h, block, 64, "");
  }
  {
    Block block(h, BlockConfig(8, true), {DType::kI8, 128}, 8192, kSequences);
    AddPrefill(h, block, 8192, "_int8", nullptr);
    AddPrefill(h, block, 65536, "_int8", nullptr);
    AddDecode(h, block, 1, "_int8");
    AddDecode(h, block, 64, "_int8");
  }
  // One softmax layer, as often as there are layers: their weights and caches would not fit.
  Block softmax(h, BlockConfig(1, false), {DType::kBF16, 0}, kLong[2] + 8 * kChunk, 1);
  for (size_t i = 0; i < hybrid.size(); ++i) {
    const double all = static_cast<double>(layers) * softmax.Prefill(kLong[i]);
    h.Add({.name = fmt::format("hybrid_over_softmax_{}", kLong[i]),
           .value = all / hybrid[i],
           .unit = "x"});
  }
}

}  // namespace mm01::gpu
