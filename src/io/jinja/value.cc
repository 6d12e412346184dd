#include "io/jinja/value.h"

#include <fmt/core.h>

#include <limits>

#include "base/json.h"

namespace mm01::jinja {

Value Value::Bool(bool b, bool trusted) {
  Value v(Kind::kBool);
  v.trusted = trusted;
  v.boolean = b;
  return v;
}

Value Value::Int(int64_t i, bool trusted) {
  Value v(Kind::kInt);
  v.trusted = trusted;
  v.integer = i;
  return v;
}

Value Value::Float(double f, bool trusted) {
  Value v(Kind::kFloat);
  v.trusted = trusted;
  v.real = f;
  return v;
}

Value Value::String(const Text* text) {
  Value v(Kind::kString);
  v.text = text;
  return v;
}

Value Value::Of(Seq* seq) {
  Value v(Kind::kSeq);
  v.seq = seq;
  return v;
}

Value Value::Of(Dict* dict) {
  Value v(Kind::kDict);
  v.dict = dict;
  return v;
}

Value Value::Of(Function function) {
  Value v(Kind::kFunction);
  v.function = function;
  return v;
}

Value Value::Undefined(const Text* name) {
  Value v(Kind::kUndefined);
  v.text = name;
  return v;
}

double Value::AsDouble() const {
  return kind == Kind::kFloat ? real : static_cast<double>(AsInt());
}

Value Runtime::Borrowed(std::string_view bytes, bool trusted) {
  Text& text = texts.emplace_back();
  Borrow(bytes, trusted, text);
  return Value::String(&text);
}

Value Runtime::Copied(std::string bytes, bool trusted) {
  budget.Bytes(bytes.size());
  Text& text = texts.emplace_back();
  Own(std::move(bytes), trusted, text);
  return Value::String(&text);
}

Result<Value> Runtime::Built(TextBuilder&& builder) {
  if (builder.full() && !budget.spent()) {
    return Status::TooLarge(fmt::format("a text grows over {} bytes", kMaxTextBytes));
  }
  Text& text = texts.emplace_back();
  builder.MoveTo(text);
  return Value::String(&text);
}

Value Runtime::Slice(const Text& text, size_t begin, size_t end) {
  TextBuilder builder(budget);
  builder.Append(text, begin, end);
  Text& piece = texts.emplace_back();
  builder.MoveTo(piece);
  return Value::String(&piece);
}

Value Runtime::NewSeq(SeqKind kind, std::vector<Value> items) {
  budget.Items(items.size());
  Seq& seq = seqs.emplace_back();
  seq.kind = kind;
  seq.items = std::move(items);
  return Value::Of(&seq);
}

Value Runtime::NewMethod(const Value& self, std::string_view name) {
  Value v = Value::None();
  v.kind = Kind::kMethod;
  v.method = &methods.emplace_back(Method{self, name});
  return v;
}

Result<Value> Runtime::FromJson(const Json& json, const std::string& where, int depth) {
  if (depth > kMaxNesting) {
    return Status::TooLarge(fmt::format("{}: nested deeper than {} levels", where, kMaxNesting));
  }
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value::Bool(json.get<bool>(), false);
    case Json::value_t::number_unsigned:
      if (json.get<uint64_t>() > std::numeric_limits<int64_t>::max()) {
        return Status::Unsupported(fmt::format("{}: the number {} does not fit 64 bits with a sign",
                                               where, JsonText(json)));
      }
      [[fallthrough]];
    case Json::value_t::number_integer:
      return Value::Int(json.get<int64_t>(), false);
    case Json::value_t::number_float:
      return Value::Float(json.get<double>(), false);
    case Json::value_t::string: {
      const std::string& s = json.get_ref<const std::string&>();
      if (ValidUtf8Prefix(s) != s.size())
        return Status::Invalid(where + ": a string is not valid UTF-8");
      return Borrowed(s, false);
    }
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& item : json) {
        MM01_ASSIGN_OR_RETURN(Value v, FromJson(item, where, depth + 1));
        items.push_back(v);
      }
      return NewSeq(SeqKind::kList, std::move(items));
    }
    case Json::value_t::object: {
      Dict* dict = NewDict();
      budget.Items(json.size());
      for (const auto& [key, item] : json.get_ref<const Json::object_t&>()) {
        if (ValidUtf8Prefix(key) != key.size())
          return Status::Invalid(where + ": a key is not valid UTF-8");
        MM01_ASSIGN_OR_RETURN(Value v, FromJson(item, where, depth + 1));
        dict->items.emplace_back(Borrowed(key, false), v);
      }
      return Value::Of(dict);
    }
    default:
      return Value::None();
  }
}

std::string_view KindName(const Value& v) {
  switch (v.kind) {
    case Kind::kUndefined:
      return "an undefined value";
    case Kind::kNone:
      return "none";
    case Kind::kBool:
      return "a bool";
    case Kind::kInt:
      return "an int";
    case Kind::kFloat:
      return "a float";
    case Kind::kString:
      return v.text->markup ? "a string marked safe" : "a string";
    case Kind::kDict:
      return "a dict";
    case Kind::kNamespace:
      return "a namespace";
    case Kind::kLoop:
      return "the loop variable";
    case Kind::kMacro:
      return "a macro";
    case Kind::kMethod:
      return "a method";
    case Kind::kFunction:
      return "a function";
    case Kind::kSeq:
      break;
  }
  switch (v.seq->kind) {
    case SeqKind::kList:
      return "a list";
    case SeqKind::kTuple:
      return "a tuple";
    case SeqKind::kRange:
      return "a range";
    case SeqKind::kGenerator:
      return "a generator";
    default:
      return "a view of a dict";
  }
}

Status UndefinedError(const Value& v) {
  if (!v.text) return Status::Invalid("an undefined value is used");
  return Status::Invalid(fmt::format("'{}' is undefined", v.text->view.substr(0, 100)));
}

}  // namespace mm01::jinja
