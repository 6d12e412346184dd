// What the GPU's benches share: ceilings of this run, timing, and the rows of the receipt.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "device/queue.h"
#include "kernels/gemm/weight.h"

namespace mm01::gpu {

// A line of docs/measured/gpu.json. `ceiling` is what the same run says is possible, in the same
// unit; `share` compares the two. 0: none.
struct Row {
  std::string name;
  double value = 0;
  std::string unit;
  double ceiling = 0;
  double share = 0;
};

class Harness {
 public:
  // Measures the ceilings: bf16 8192^3 by cuBLASLt, and a device-to-device copy, each as Time does.
  // `say` gets each line for people as it comes.
  Harness(Queue& queue, std::function<void(const std::string& line)> say);

  Queue& queue() { return queue_; }
  double gemm_tflops() const { return gemm_tflops_; }
  // The same product over and over for half a second, the second half timed: what the chip, whose
  // clock falls under load, gives around a figure that takes as long.
  double HotGemmTflops();
  double copy_tb_s() const { return copy_tb_s_; }  // bytes read and written
  double Floor(double bytes) const { return bytes / (copy_tb_s_ * 1e12); }  // seconds

  // Median seconds of `call(i)`, i = 0, 1, ...: two calls to warm up, then single calls timed by
  // events for about `budget` seconds, 5 at least and 250 at most: a product and what it is
  // compared with heat the chip for as long. `call` puts work in the queue.
  double Time(const std::function<void(int64_t i)>& call, double budget = 0.3);
  // Seconds a call, of `calls` calls captured once into a graph and replayed: launches cost
  // nothing. `call(i)` may use another set of buffers for each i, so that none stays in L2.
  double TimeGraph(int64_t calls, const std::function<void(int64_t i)>& call);

  void Add(Row row);
  // A line of explanation.
  void Say(const std::string& line) { say_(line); }
  const std::vector<Row>& rows() const { return rows_; }

 private:
  void CeilingGemm();

  Queue& queue_;
  std::function<void(const std::string& line)> say_;
  Weight gemm_w_, gemm_x_;  // of the ceiling
  Buffer gemm_out_;
  double gemm_tflops_ = 0;
  double copy_tb_s_ = 0;
  std::vector<Row> rows_;
};

// Random numbers are made once and repeated: a period that no row's length divides.
inline constexpr int64_t kLongPeriod = 1'000'003;

// Fills `count` elements on the device with `period` over and over.
template <typename T>
void Repeat(Queue& queue, const void* to, int64_t count, const std::vector<T>& period) {
  auto* const out = static_cast<T*>(const_cast<void*>(to));
  int64_t done = std::min(count, std::ssize(period));
  queue.CopyToDevice(out, period.data(), done * static_cast<int64_t>(sizeof(T)));
  while (done < count) {
    const int64_t more = std::min(done, count - done);
    queue.CopyOnDevice(out + done, out, more * static_cast<int64_t>(sizeof(T)));
    done += more;
  }
}

// Each checks its answer against the double-precision reference before it times, and throws
// DeviceError where that fails.
void BenchLightning(Harness& h);
void BenchLightningBackward(Harness& h);
void BenchAttention(Harness& h);
void BenchMoe(Harness& h);
void BenchDense(Harness& h);        // projections at decode sizes, norms, RoPE
void BenchBlock(Harness& h);        // eight layers of Text-01
void BenchTrainLayers(Harness& h);  // layers of Text-01 in training
void BenchTrain(Harness& h);        // a training pass of the small model

}  // namespace mm01::gpu
