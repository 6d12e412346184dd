// Numbers as Python computes them, with int64_t for int; and +, * on strings and lists.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "io/jinja/format.h"
#include "io/jinja/operators.h"

namespace mm01::jinja {
namespace {

Status Overflow(std::string_view op, const Value& a, const Value& b) {
  return Status::Unsupported(
      fmt::format("{} {} {} does not fit 64 bits", a.AsInt(), op, b.AsInt()));
}

Status DivisionByZero() {
  return Status::Invalid("a division by zero");
}

Result<Value> IntPower(const Value& a, const Value& b) {
  int64_t base = a.AsInt(), result = 1;
  for (int64_t exponent = b.AsInt(); exponent > 0; exponent >>= 1) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) {
      return Overflow("**", a, b);
    }
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) return Overflow("**", a, b);
  }
  return Value::Int(result, a.trusted && b.trusted);
}

Result<Value> Ints(std::string_view op, const Value& a, const Value& b) {
  const int64_t x = a.AsInt(), y = b.AsInt();
  const bool trusted = a.trusted && b.trusted;
  int64_t z = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(x, y, &z);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(x, y, &z);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(x, y, &z);
  } else if (op == "**") {
    return IntPower(a, b);
  } else if (y == 0) {
    return DivisionByZero();
  } else if (op == "/") {
    return Value::Float(static_cast<double>(x) / static_cast<double>(y), trusted);
  } else if (y == -1) {  // INT64_MIN / -1 traps
    overflow = op == "//" && __builtin_sub_overflow(int64_t{0}, x, &z);
  } else {
    const int64_t rest = x % y;
    const bool down = rest != 0 && (rest < 0) != (y < 0);  // Python rounds down, C++ to zero
    z = op == "//" ? x / y - down : rest + (down ? y : 0);
  }
  if (overflow) return Overflow(op, a, b);
  return Value::Int(z, trusted);
}

// As CPython's float_divmod and float_pow.
Result<Value> Floats(std::string_view op, const Value& a, const Value& b) {
  const double x = a.AsDouble(), y = b.AsDouble();
  const bool trusted = a.trusted && b.trusted;
  if (op == "+") return Value::Float(x + y, trusted);
  if (op == "-") return Value::Float(x - y, trusted);
  if (op == "*") return Value::Float(x * y, trusted);
  if (op == "**") {
    if (x == 0 && y < 0) return DivisionByZero();
    if (x < 0 && std::isfinite(x) && std::isfinite(y) && y != std::floor(y)) {
      return Status::Unsupported("a root of a negative number is not supported");
    }
    const double z = std::pow(x, y);
    if (std::isinf(z) && std::isfinite(x) && std::isfinite(y)) {
      return Status::Invalid("a power does not fit a double");
    }
    return Value::Float(z, trusted);
  }
  if (y == 0) return DivisionByZero();
  if (op == "/") return Value::Float(x / y, trusted);
  double rest = std::fmod(x, y);
  double quotient = (x - rest) / y;
  if (rest != 0) {
    if ((y < 0) != (rest < 0)) {
      rest += y;
      quotient -= 1;
    }
  } else {
    rest = std::copysign(0.0, y);
  }
  if (op == "%") return Value::Float(rest, trusted);
  if (quotient == 0) return Value::Float(std::copysign(0.0, x / y), trusted);
  const double floor = std::floor(quotient);
  return Value::Float(quotient - floor > 0.5 ? floor + 1 : floor, trusted);
}

Result<Value> Add(Runtime& rt, const Value& a, const Value& b) {
  if (a.IsString()) {
    TextBuilder builder(rt.budget);
    const bool markup = a.text->markup || b.text->markup;
    for (const Text* text : {a.text, b.text}) {
      if (markup && !text->markup) {
        AppendEscaped(*text, builder);
      } else {
        builder.Append(*text);
      }
    }
    MM01_ASSIGN_OR_RETURN(Value sum, rt.Built(std::move(builder)));
    return markup ? MarkSafe(rt, sum) : sum;
  }
  const size_t size = a.seq->items.size() + b.seq->items.size();
  if (size > static_cast<size_t>(kMaxItems)) {
    return Status::TooLarge(
        fmt::format("a list of {} elements, at most {} are held", size, kMaxItems));
  }
  std::vector<Value> items = a.seq->items;
  items.insert(items.end(), b.seq->items.begin(), b.seq->items.end());
  return rt.NewSeq(a.seq->kind, std::move(items));
}

Result<Value> Repeat(Runtime& rt, const Value& v, int64_t times) {
  if (v.IsString()) {
    if (v.text->size() == 0) return v;
    TextBuilder builder(rt.budget);
    if (v.text->runs.size() > 1) {
      for (int64_t i = 0; i < times && !builder.full(); ++i) builder.Append(*v.text);
      return rt.Built(std::move(builder));
    }
    // Many at a time: the text may be a single letter.
    const int64_t per_chunk = std::clamp<int64_t>(times, 1, 1 + 4096 / v.text->size());
    std::string chunk;
    for (int64_t i = 0; i < per_chunk; ++i) chunk += v.text->view;
    for (; times > 0 && !builder.full(); times -= per_chunk) {
      const size_t num = std::min(times, per_chunk) * v.text->size();
      builder.Append(std::string_view(chunk).substr(0, num), v.text->runs[0].trusted);
    }
    return rt.Built(std::move(builder));
  }
  const std::vector<Value>& unit = v.seq->items;
  if (!unit.empty() && times > kMaxItems / static_cast<int64_t>(unit.size())) {
    return Status::TooLarge(fmt::format("a list of {} times {} elements, at most {} are held",
                                        times, unit.size(), kMaxItems));
  }
  std::vector<Value> items;
  for (int64_t i = 0; i < times && !unit.empty(); ++i) {
    items.insert(items.end(), unit.begin(), unit.end());
  }
  return rt.NewSeq(v.seq->kind, std::move(items));
}

bool IsList(const Value& v) {
  return v.kind == Kind::kSeq && v.seq->kind <= SeqKind::kTuple;
}

}  // namespace

Result<Value> Arithmetic(Runtime& rt, std::string_view op, const Value& a, const Value& b) {
  if (a.IsUndefined()) return UndefinedError(a);
  if (b.IsUndefined()) return UndefinedError(b);
  if (a.IsNumber() && b.IsNumber()) {
    const bool ints = a.IsInteger() && b.IsInteger();
    return ints && !(op == "**" && b.AsInt() < 0) ? Ints(op, a, b) : Floats(op, a, b);
  }
  if (op == "+" &&
      ((a.IsString() && b.IsString()) || (IsList(a) && IsList(b) && a.seq->kind == b.seq->kind))) {
    return Add(rt, a, b);
  }
  if (op == "*" && b.IsInteger() && ((a.IsString() && !a.text->markup) || IsList(a))) {
    return Repeat(rt, a, b.AsInt());
  }
  if (op == "*" && a.IsInteger() && ((b.IsString() && !b.text->markup) || IsList(b))) {
    return Repeat(rt, b, a.AsInt());
  }
  if (op == "%" && a.IsString()) return Status::Unsupported("'%' on a string is not supported");
  return Status::Invalid(
      fmt::format("'{}' wants other operands than {} and {}", op, KindName(a), KindName(b)));
}

Result<Value> Negate(const Value& v) {
  if (v.IsUndefined()) return UndefinedError(v);
  if (v.kind == Kind::kFloat) return Value::Float(-v.real, v.trusted);
  if (!v.IsInteger()) return Status::Invalid(fmt::format("'-' before {}", KindName(v)));
  return Ints("-", Value::Int(0), v);
}

}  // namespace mm01::jinja
