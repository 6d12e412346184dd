// Random numbers that are a function of what they are for, never of who drew before.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace mm01 {

// The SplitMix64 finalizer: every bit of the result depends on every bit of x.
constexpr uint64_t Mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The n-th number of the stream (seed, stream).
constexpr uint64_t RandomBits(uint64_t seed, uint64_t stream, uint64_t n) {
  return Mix64(Mix64(Mix64(seed) ^ stream) ^ n);
}

// Uniform in [0, 1), 53 bits.
constexpr double RandomUniform(uint64_t seed, uint64_t stream, uint64_t n) {
  return static_cast<double>(RandomBits(seed, stream, n) >> 11) * 0x1p-53;
}

// Standard normal, by Box and Muller.
inline double RandomNormal(uint64_t seed, uint64_t stream, uint64_t n) {
  const double u = 1.0 - RandomUniform(seed, stream, 2 * n);
  const double v = RandomUniform(seed, stream, 2 * n + 1);
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

}  // namespace mm01
