#include "eval/ceilings.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "base/rng.h"
#include "device/buffer.h"
#include "eval/bench_tools.h"

namespace mm01::eval {
namespace {

// 64 bytes; the compiler turns it into what the target has.
using Line = uint64_t __attribute__((vector_size(64)));

#if defined(__x86_64__)
#define MM01_WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MM01_WIDEST
#endif

// Adds up 4 * `lines` lines: those of one stretch, or of four stretches side by side.
MM01_WIDEST uint64_t ReadStretch(const Line* at, int64_t lines) {
  Line a{}, b{}, c{}, d{};
  for (int64_t i = 0; i < 4 * lines; i += 4) {
    a += at[i];
    b += at[i + 1];
    c += at[i + 2];
    d += at[i + 3];
  }
  const Line all = a + b + c + d;
  return all[0] ^ all[7];
}

MM01_WIDEST uint64_t ReadStretches(const Line* at, int64_t lines) {
  Line a{}, b{}, c{}, d{};
  for (int64_t i = 0; i < lines; ++i) {
    __builtin_prefetch(at + i + 16);
    __builtin_prefetch(at + i + 16 + lines);
    __builtin_prefetch(at + i + 16 + 2 * lines);
    __builtin_prefetch(at + i + 16 + 3 * lines);
    a += at[i];
    b += at[i + lines];
    c += at[i + 2 * lines];
    d += at[i + 3 * lines];
  }
  const Line all = a + b + c + d;
  return all[0] ^ all[7];
}

double ReadOnce(Queue& queue, const Buffer& memory, uint64_t (*read)(const Line*, int64_t)) {
  const int64_t pieces = 64, lines = memory.bytes() / 64 / pieces / 4;
  std::vector<uint64_t> sums(pieces);
  const double start = Now();
  queue.pool().ParallelFor(pieces, [&](int64_t i, int) {
    sums[static_cast<size_t>(i)] = read(memory.As<Line>() + i * lines * 4, lines);
  });
  const double seconds = Now() - start;
  // A use of the sums, so that the reads cannot be left out.
  const bool odd = std::count(sums.begin(), sums.end(), uint64_t{1}) == pieces;
  return odd ? 0.0 : static_cast<double>(pieces * lines * 4 * 64) / seconds;
}

// The BLAS interface in C, row-major, as OpenBLAS exports it.
using Cblas = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int,
                       float, float*, int);
using Dnnl = int (*)(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t,
                     const float*, int64_t, float, float*, int64_t);

void* FirstOf(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  }
  return nullptr;
}

template <typename F>
double BestRate(double flops, int repeats, F&& multiply) {
  double best = 0.0;
  for (int i = 0; i < repeats; ++i) {
    const double start = Now();
    multiply();
    best = std::max(best, flops / (Now() - start));
  }
  return best;
}

}  // namespace

ReadCeiling::ReadCeiling(Queue& queue, int64_t bytes) : queue_(queue), memory_(bytes) {
  const int64_t words = bytes / 8 / 64;
  queue_.pool().ParallelFor(64, [&](int64_t i, int) {
    uint64_t* p = memory_.As<uint64_t>() + i * words;
    for (int64_t j = 0; j < words; ++j) p[j] = static_cast<uint64_t>(i + j);
  });
}

double ReadCeiling::Measure() const {
  double best = 0.0;
  for (int repeat = 0; repeat < 2; ++repeat) {
    best = std::max(
        {best, ReadOnce(queue_, memory_, ReadStretch), ReadOnce(queue_, memory_, ReadStretches)});
  }
  return best;
}

GemmCeiling LibraryGemm(int num_threads, int64_t m, int64_t n, int64_t k, int repeats) {
  std::vector<float> x(static_cast<size_t>(m * k)), w(static_cast<size_t>(n * k));
  std::vector<float> out(static_cast<size_t>(m * n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(RandomUniform(1, 0, i)) - 0.5f;
  for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(RandomUniform(2, 0, i)) - 0.5f;
  const double flops =
      2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);

  GemmCeiling best;
  const auto offer = [&](const char* name, double rate) {
    if (rate > best.flops_per_second) best = {rate, name};
  };
  if (void* library = FirstOf({"libdnnl.so.2", "libdnnl.so.3", "libdnnl.so"})) {
    if (const auto sgemm = reinterpret_cast<Dnnl>(dlsym(library, "dnnl_sgemm"))) {
      offer("oneDNN", BestRate(flops, repeats, [&] {
              sgemm('N', 'T', m, n, k, 1.0f, x.data(), k, w.data(), k, 0.0f, out.data(), n);
            }));
    }
  }
  if (void* library = FirstOf({"libopenblas.so.0", "libopenblas.so"})) {
    const auto threads =
        reinterpret_cast<void (*)(int)>(dlsym(library, "openblas_set_num_threads"));
    if (threads) threads(num_threads);
    if (const auto sgemm = reinterpret_cast<Cblas>(dlsym(library, "cblas_sgemm"))) {
      constexpr int kRowMajor = 101, kNoTrans = 111, kTrans = 112;
      offer("OpenBLAS", BestRate(flops, repeats, [&] {
              sgemm(kRowMajor, kNoTrans, kTrans, static_cast<int>(m), static_cast<int>(n),
                    static_cast<int>(k), 1.0f, x.data(), static_cast<int>(k), w.data(),
                    static_cast<int>(k), 0.0f, out.data(), static_cast<int>(n));
            }));
    }
  }
  return best;
}

}  // namespace mm01::eval
