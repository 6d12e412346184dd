#include "eval/bench_gpu/harness.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "device/check_cuda.cuh"
#include "kernels/gemm/gemm.h"
#include "model/text01/weights.h"

namespace mm01::gpu {
namespace {

using cuda::CheckCuda;

constexpr int64_t kGemmSize = 8192;  // of the ceiling, in all three dims
constexpr double kGemmTflop = 2e-12 * kGemmSize * kGemmSize * kGemmSize;
constexpr int kHotCalls = 160;  // about a quarter of a second

class Event {
 public:
  Event() { CheckCuda(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void Record(Queue& queue) { CheckCuda(cudaEventRecord(event_, queue.stream())); }
  double SecondsSince(const Event& begin) const {
    float ms = 0;
    CheckCuda(cudaEventSynchronize(event_));
    CheckCuda(cudaEventElapsedTime(&ms, begin.event_, event_));
    return static_cast<double>(ms) * 1e-3;
  }

 private:
  cudaEvent_t event_;
};

double Once(Queue& queue, const std::function<void()>& call) {
  Event begin, end;
  begin.Record(queue);
  call();
  end.Record(queue);
  return end.SecondsSince(begin);
}

double Median(std::vector<double> times) {
  std::ranges::sort(times);
  return times[times.size() / 2];
}

}  // namespace

Harness::Harness(Queue& queue, std::function<void(const std::string&)> say)
    : queue_(queue),
      say_(std::move(say)),
      gemm_w_(RandomMatrix(queue, {DType::kBF16, 0}, kGemmSize, kGemmSize, 1)),
      gemm_x_(RandomMatrix(queue, {DType::kBF16, 0}, kGemmSize, kGemmSize, 2)),
      gemm_out_(kGemmSize * kGemmSize * SizeOf(DType::kBF16), Device::kCuda) {
  constexpr int64_t kCopyBytes = int64_t{2} << 30;
  gemm_tflops_ = kGemmTflop / Time([&](int64_t) { CeilingGemm(); });
  const Buffer from(kCopyBytes, Device::kCuda), to(kCopyBytes, Device::kCuda);
  const double seconds =
      Time([&](int64_t) { queue_.CopyOnDevice(to.data(), from.data(), kCopyBytes); });
  copy_tb_s_ = 2.0 * kCopyBytes / seconds * 1e-12;
  Add({.name = "gemm_tflops", .value = gemm_tflops_, .unit = "TFLOP/s"});
  Add({.name = "copy_tb_s", .value = copy_tb_s_, .unit = "TB/s"});
}

void Harness::CeilingGemm() {
  const Tensor x(DType::kBF16, const_cast<void*>(gemm_x_.data()), {kGemmSize, kGemmSize});
  Gemm(queue_, {x, &gemm_w_, Tensor(DType::kBF16, gemm_out_.data(), {kGemmSize, kGemmSize})});
}

double Harness::HotGemmTflops() {
  const auto many = [&] {
    for (int i = 0; i < kHotCalls; ++i) CeilingGemm();
  };
  many();
  return kHotCalls * kGemmTflop / Once(queue_, many);
}

double Harness::Time(const std::function<void(int64_t)>& call, double budget) {
  int64_t i = 0;
  call(i++);
  const double first = Once(queue_, [&] { call(i++); });
  const int64_t calls = std::clamp<int64_t>(static_cast<int64_t>(budget / first), 5, 250);
  std::vector<double> times;
  for (int64_t n = 0; n < calls; ++n) times.push_back(Once(queue_, [&] { call(i++); }));
  return Median(std::move(times));
}

double Harness::TimeGraph(int64_t calls, const std::function<void(int64_t)>& call) {
  for (int64_t i = 0; i < std::min<int64_t>(2, calls); ++i) call(i);  // scratch memory settles
  queue_.Wait();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CheckCuda(cudaStreamBeginCapture(queue_.stream(), cudaStreamCaptureModeThreadLocal));
  for (int64_t i = 0; i < calls; ++i) call(i);
  CheckCuda(cudaStreamEndCapture(queue_.stream(), &graph));
  CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
  std::vector<double> times;
  constexpr int kWarmUp = 2, kReplays = 7;
  for (int i = 0; i < kWarmUp + kReplays; ++i) {
    const double t = Once(queue_, [&] { CheckCuda(cudaGraphLaunch(executable, queue_.stream())); });
    if (i >= kWarmUp) times.push_back(t / static_cast<double>(calls));
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  return Median(std::move(times));
}

void Harness::Add(Row row) {
  std::string line = fmt::format("{:<34}{:>12.4g} {:<9}", row.name, row.value, row.unit);
  if (row.ceiling > 0) line += fmt::format("{:>7.1f} % of {:.4g}", 100 * row.share, row.ceiling);
  say_(line);
  rows_.push_back(std::move(row));
}

}  // namespace mm01::gpu
