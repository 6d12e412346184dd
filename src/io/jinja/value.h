// What a template computes with: Python's values as far as templates need them.
//
// A Value is a small handle; what it points to lives in the Runtime of one rendering and is freed
// with it, all at once, so that values nested however deep cost no recursion.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"
#include "io/jinja/budget.h"
#include "io/jinja/text.h"

namespace mm01::jinja {

struct Closure;
struct Dict;
struct Loop;
struct Method;
struct Seq;
struct Value;

enum class Kind : uint8_t {
  kUndefined,  // a name or key that was not there; text = its name or null
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kSeq,
  kDict,
  kNamespace,  // a Dict that `{% set ns.x %}` writes to
  kLoop,
  kMacro,
  kMethod,
  kFunction,
};

enum class Function : uint8_t { kRange, kNamespace, kDict, kRaiseException };

struct Value {
  Value() : text(nullptr) {}
  static Value None() { return Value(Kind::kNone); }
  static Value Bool(bool b, bool trusted = true);
  static Value Int(int64_t i, bool trusted = true);
  static Value Float(double f, bool trusted = true);
  static Value String(const Text* text);
  static Value Of(Seq* seq);
  static Value Of(Dict* dict);
  static Value Of(Function function);
  static Value Undefined(const Text* name);

  bool IsUndefined() const { return kind == Kind::kUndefined; }
  bool IsNone() const { return kind == Kind::kNone; }
  bool IsString() const { return kind == Kind::kString; }
  bool IsInteger() const { return kind == Kind::kInt || kind == Kind::kBool; }  // as Python has it
  bool IsNumber() const { return IsInteger() || kind == Kind::kFloat; }
  int64_t AsInt() const { return kind == Kind::kBool ? boolean : integer; }
  double AsDouble() const;

  Kind kind = Kind::kUndefined;
  bool trusted = true;  // of numbers and booleans; texts know it by run
  union {
    bool boolean;
    int64_t integer;
    double real;
    const Text* text;
    Seq* seq;
    Dict* dict;
    Loop* loop;
    const Closure* closure;
    const Method* method;
    Function function;
  };

 private:
  explicit Value(Kind k) : kind(k), text(nullptr) {}
};

enum class SeqKind : uint8_t { kList, kTuple, kRange, kKeys, kValues, kItems, kGenerator };

struct Seq {
  SeqKind kind = SeqKind::kList;
  std::vector<Value> items;
  std::array<int64_t, 3> range{};  // start, stop, step, of kRange
  bool consumed = false;           // a kGenerator can be walked once
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in the order of insertion
};

// A method that was named and not yet called: "a".upper
struct Method {
  Value self;
  std::string_view name;
};

struct Runtime {
  Runtime() = default;
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  Value Borrowed(std::string_view bytes, bool trusted);
  Value Copied(std::string bytes, bool trusted);
  Result<Value> Built(TextBuilder&& builder);
  Value Slice(const Text& text, size_t begin, size_t end);  // bytes; the runs go along
  Value NewSeq(SeqKind kind, std::vector<Value> items);
  Value NewMethod(const Value& self, std::string_view name);
  Dict* NewDict() { return &dicts.emplace_back(); }

  // A value of the request: every text and number in it is untrusted. Borrows the strings of
  // `json`.
  Result<Value> FromJson(const Json& json, const std::string& where, int depth = 0);

  Budget budget;
  int depth = 0;  // of the evaluator and of filters that call filters
  std::deque<Text> texts;
  std::deque<Seq> seqs;
  std::deque<Dict> dicts;
  std::deque<Method> methods;
};

// Raises the depth for as long as it lives.
class DepthGuard {
 public:
  explicit DepthGuard(Runtime& rt) : rt_(rt) { ++rt_.depth; }
  ~DepthGuard() { --rt_.depth; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;
  bool ok() const { return rt_.depth <= kMaxDepth; }

 private:
  Runtime& rt_;
};

// "a string", "an int": for messages.
std::string_view KindName(const Value& v);
// The error of a use of an undefined value.
Status UndefinedError(const Value& v);

}  // namespace mm01::jinja
