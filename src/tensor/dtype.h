// Element types, and bf16 on the CPU.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

namespace mm01 {

enum class DType : uint8_t {
  kF32,
  kBF16,
  kF16,
  kF64,
  kI8,
  kU8,
  kI32,
  kI64,
  kBool,
  kI16,
  kU16,
  kU32,
  kU64,
  kF8E4M3,
  kF8E5M2
};

// The upper half of a float32.
struct bf16 {
  uint16_t bits = 0;
  friend bool operator==(bf16, bf16) = default;
};

constexpr float ToFloat(float x) {
  return x;
}
constexpr float ToFloat(bf16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN.
constexpr bf16 ToBF16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

// float16, given by its bits, as float32: every one of them is exact.
inline float HalfToFloat(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float x;
  if (exponent == 31) {
    x = mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  } else if (exponent == 0) {
    x = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    x = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return bits & 0x8000 ? -x : x;
}

constexpr int64_t SizeOf(DType t) {
  switch (t) {
    case DType::kF64:
    case DType::kI64:
    case DType::kU64:
      return 8;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
    case DType::kI16:
    case DType::kU16:
      return 2;
    case DType::kI8:
    case DType::kU8:
    case DType::kBool:
    case DType::kF8E4M3:
    case DType::kF8E5M2:
      return 1;
  }
  return 0;
}

inline std::string ToString(DType t) {
  switch (t) {
    case DType::kF32:
      return "float32";
    case DType::kBF16:
      return "bf16";
    case DType::kF16:
      return "float16";
    case DType::kF64:
      return "float64";
    case DType::kI8:
      return "int8";
    case DType::kU8:
      return "uint8";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
    case DType::kBool:
      return "bool";
    case DType::kI16:
      return "int16";
    case DType::kU16:
      return "uint16";
    case DType::kU32:
      return "uint32";
    case DType::kU64:
      return "uint64";
    case DType::kF8E4M3:
      return "fp8 e4m3";
    case DType::kF8E5M2:
      return "fp8 e5m2";
  }
  return "?";
}

template <typename T>
struct DTypeTrait;
template <>
struct DTypeTrait<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeTrait<bf16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct DTypeTrait<double> {
  static constexpr DType value = DType::kF64;
};
template <>
struct DTypeTrait<int8_t> {
  static constexpr DType value = DType::kI8;
};
template <>
struct DTypeTrait<uint8_t> {
  static constexpr DType value = DType::kU8;
};
template <>
struct DTypeTrait<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct DTypeTrait<int64_t> {
  static constexpr DType value = DType::kI64;
};
template <>
struct DTypeTrait<int16_t> {
  static constexpr DType value = DType::kI16;
};
template <>
struct DTypeTrait<uint16_t> {
  static constexpr DType value = DType::kU16;
};
template <>
struct DTypeTrait<uint32_t> {
  static constexpr DType value = DType::kU32;
};
template <>
struct DTypeTrait<uint64_t> {
  static constexpr DType value = DType::kU64;
};

template <typename T>
inline constexpr DType kDTypeOf = DTypeTrait<std::remove_const_t<T>>::value;

}  // namespace mm01
