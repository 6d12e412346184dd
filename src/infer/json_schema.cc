// Schemas to grammars.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>

#include "base/json.h"
#include "infer/grammar.h"
#include "infer/json_filter.h"
#include "infer/json_rules.h"

namespace mm01::infer {
namespace {

constexpr int64_t kLargest = 9'999'999'999'999'999;  // 16 digits

using Symbols = std::vector<int32_t>;

class SchemaCompiler {
 public:
  SchemaCompiler(Grammar& grammar, JsonRules& json, const Json& root)
      : g_(grammar), json_(json), root_(root) {}

  Result<int32_t> Compile() { return Value(root_, "#", 0); }

 private:
  static Status Wrong(const std::string& where, const std::string& what) {
    return Status::Invalid(fmt::format("the schema at {} {}", where, what));
  }
  static Status TooMany(const std::string& where, const char* what, size_t found) {
    return Status::TooLarge(
        fmt::format("the schema at {} has {} with {} entries, at most {} are "
                    "followed",
                    where, what, found, kMaxSchemaEntries));
  }
  Status CheckKeywords(const Json& schema, const std::string& where) const;
  Result<int32_t> Value(const Json& schema, const std::string& where, int depth);
  Result<int32_t> Reference(const Json& schema, const std::string& where);
  Result<int32_t> OfList(const Json& list, const std::string& where, int depth);
  Result<int32_t> OfType(const std::string& type, const Json& schema, const std::string& where,
                         int depth);
  Result<int32_t> Object(const Json& schema, const std::string& where, int depth);
  Result<int32_t> Array(const Json& schema, const std::string& where, int depth);
  Result<int32_t> Integer(const Json& schema, const std::string& where);
  Result<int64_t> Count(const Json& schema, const char* key, int64_t otherwise,
                        const std::string& where) const;

  Grammar& g_;
  JsonRules& json_;
  const Json& root_;
  std::map<std::string, int32_t> references_;
};

Status SchemaCompiler::CheckKeywords(const Json& schema, const std::string& where) const {
  static const std::set<std::string> known = {
      "type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems",
      "maxItems", "enum", "const", "anyOf", "allOf", "$ref", "$defs", "definitions", "minLength",
      "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
      // Annotations.
      "title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated",
      "readOnly", "writeOnly"};
  for (const auto& [key, value] : schema.items()) {
    if (known.count(key) != 0) continue;
    return Status::Unsupported(
        fmt::format("the schema at {} has the keyword '{}', which is not supported", where,
                    key.substr(0, 100)));
  }
  return Status::Ok();
}

Result<int32_t> SchemaCompiler::Value(const Json& schema, const std::string& where, int depth) {
  if (depth > kMaxSchemaDepth) {
    return Wrong(where, fmt::format("is nested deeper than {} levels", kMaxSchemaDepth));
  }
  if (g_.size() > kMaxGrammarSize) {
    return Status::TooLarge("the schema allows too many different texts to be followed");
  }
  if (schema.is_boolean() && schema.get<bool>()) return json_.any();
  if (!schema.is_object()) return Wrong(where, "is no object");
  MM01_RETURN_IF_ERROR(CheckKeywords(schema, where));
  if (schema.contains("$ref")) return Reference(schema, where);
  if (schema.contains("const")) return json_.Text(JsonText(schema["const"]));
  if (schema.contains("enum")) {
    const Json& list = schema["enum"];
    if (!list.is_array() || list.empty()) return Wrong(where, "has an enum that is no list");
    if (list.size() > kMaxSchemaEntries) return TooMany(where, "enum", list.size());
    std::vector<int32_t> rules;
    for (const Json& value : list) rules.push_back(json_.Text(JsonText(value)));
    return json_.Either(rules);
  }
  if (schema.contains("anyOf")) return OfList(schema["anyOf"], where + "/anyOf", depth);
  if (schema.contains("allOf")) {
    if (!schema["allOf"].is_array() || schema["allOf"].size() != 1) {
      return Status::Unsupported(
          fmt::format("the schema at {} has an 'allOf' of other than one entry, which is not "
                      "supported",
                      where));
    }
    return Value(schema["allOf"][0], where + "/allOf/0", depth + 1);
  }
  if (!schema.contains("type")) {
    if (schema.contains("properties")) return Object(schema, where, depth);
    if (schema.contains("items")) return Array(schema, where, depth);
    return json_.any();
  }
  const Json& type = schema["type"];
  if (type.is_string()) return OfType(type, schema, where, depth);
  if (!type.is_array() || type.empty()) return Wrong(where, "has a type that is no name");
  std::vector<int32_t> rules;
  for (const Json& t : type) {
    if (!t.is_string()) return Wrong(where, "has a type that is no name");
    MM01_ASSIGN_OR_RETURN(const int32_t rule, OfType(t, schema, where, depth));
    rules.push_back(rule);
  }
  return json_.Either(rules);
}

Result<int32_t> SchemaCompiler::Reference(const Json& schema, const std::string& where) {
  if (!schema["$ref"].is_string()) return Wrong(where, "has a $ref that is no string");
  const std::string target = schema["$ref"];
  if (const auto known = references_.find(target); known != references_.end()) {
    return known->second;
  }
  const Json* found = nullptr;
  if (target == "#") found = &root_;
  for (const std::string prefix : {"$defs", "definitions"}) {
    const std::string start = "#/" + prefix + "/";
    if (!target.starts_with(start) || !root_.contains(prefix)) continue;
    const Json& all = root_[prefix];
    const std::string name = target.substr(start.size());
    if (all.is_object() && all.contains(name)) found = &all[name];
  }
  if (found == nullptr) {
    return Wrong(where, fmt::format("refers to '{}', which is not in #/$defs or #/definitions",
                                    target.substr(0, 100)));
  }
  const int32_t rule = g_.NewRule();
  references_[target] = rule;
  MM01_ASSIGN_OR_RETURN(const int32_t value, Value(*found, target, 0));
  g_.Add(rule, {Grammar::Call(value)});
  return rule;
}

Result<int32_t> SchemaCompiler::OfList(const Json& list, const std::string& where, int depth) {
  if (!list.is_array() || list.empty()) return Wrong(where, "is no list");
  if (list.size() > kMaxSchemaEntries) return TooMany(where, "anyOf", list.size());
  std::vector<int32_t> rules;
  for (size_t i = 0; i < list.size(); ++i) {
    MM01_ASSIGN_OR_RETURN(const int32_t rule,
                          Value(list[i], fmt::format("{}/{}", where, i), depth + 1));
    rules.push_back(rule);
  }
  return json_.Either(rules);
}

Result<int32_t> SchemaCompiler::OfType(const std::string& type, const Json& schema,
                                       const std::string& where, int depth) {
  if (type == "object") return Object(schema, where, depth);
  if (type == "array") return Array(schema, where, depth);
  if (type == "integer") return Integer(schema, where);
  if (type == "boolean") return json_.Either({json_.Text("true"), json_.Text("false")});
  if (type == "null") return json_.Text("null");
  if (type == "string") {
    MM01_ASSIGN_OR_RETURN(const int64_t min, Count(schema, "minLength", 0, where));
    MM01_ASSIGN_OR_RETURN(const int64_t max, Count(schema, "maxLength", -1, where));
    if (max >= 0 && max < min) return Wrong(where, "has a maxLength below its minLength");
    return json_.String(min, max);
  }
  if (type == "number") {
    for (const char* key : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}) {
      if (!schema.contains(key)) continue;
      return Status::Unsupported(fmt::format(
          "the schema at {} has the keyword '{}' for a number, which is supported for integers",
          where, key));
    }
    return json_.number();
  }
  return Wrong(where,
               fmt::format("has the type '{}', which is none of JSON's", type.substr(0, 100)));
}

Result<int64_t> SchemaCompiler::Count(const Json& schema, const char* key, int64_t otherwise,
                                      const std::string& where) const {
  if (!schema.contains(key)) return otherwise;
  const Json& value = schema[key];
  if (!value.is_number_unsigned() || value.get<uint64_t>() > kMaxGrammarSize / 2) {
    return Wrong(
        where, fmt::format("has a {} that is no whole number up to {}", key, kMaxGrammarSize / 2));
  }
  return value.get<int64_t>();
}

Result<int32_t> SchemaCompiler::Integer(const Json& schema, const std::string& where) {
  int64_t min = -kLargest, max = kLargest;
  bool is_bounded = false;
  for (const char* key : {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}) {
    if (!schema.contains(key)) continue;
    is_bounded = true;
    const bool is_whole = schema[key].is_number_integer();
    const double number = schema[key].is_number() ? schema[key].get<double>() : 1e300;
    if (!is_whole || number < -1e15 || number > 1e15) {
      return Wrong(where,
                   fmt::format("has a {} that is no whole number of at most 15 digits", key));
    }
    const auto bound = schema[key].get<int64_t>();
    const std::string name = key;
    if (name == "minimum") min = std::max(min, bound);
    if (name == "exclusiveMinimum") min = std::max(min, bound + 1);
    if (name == "maximum") max = std::min(max, bound);
    if (name == "exclusiveMaximum") max = std::min(max, bound - 1);
  }
  if (!is_bounded) return json_.integer();
  if (min > max) return Wrong(where, "allows no integer");
  return json_.Between(min, max);
}

// Properties in order, those that are not required may be left out.
Result<int32_t> SchemaCompiler::Object(const Json& schema, const std::string& where, int depth) {
  Json properties = Json::object();
  if (schema.contains("properties")) properties = schema["properties"];
  if (!properties.is_object()) return Wrong(where, "has properties that are no object");
  std::set<std::string> required;
  if (schema.contains("required")) {
    if (!schema["required"].is_array()) return Wrong(where, "has a required that is no list");
    if (const size_t n = schema["required"].size(); n > kMaxSchemaEntries) {
      return TooMany(where, "required", n);
    }
    for (const Json& name : schema["required"]) {
      if (!name.is_string()) return Wrong(where, "has a required that is no list of names");
      required.insert(name.get<std::string>());
      if (!properties.contains(name.get<std::string>())) properties[name.get<std::string>()] = true;
    }
  }
  if (properties.size() > kMaxSchemaEntries) {
    return TooMany(where, "properties", properties.size());
  }
  if (properties.empty()) {
    if (!schema.contains("additionalProperties")) return json_.any_object();
    const Json& rest = schema["additionalProperties"];
    if (rest == false) return json_.Text("{}");
    MM01_ASSIGN_OR_RETURN(const int32_t value,
                          Value(rest, where + "/additionalProperties", depth + 1));
    return json_.List("{", json_.Member(json_.String(0, -1), value), "}");
  }
  // rest[is_first]: what may follow from some property on.
  std::array<int32_t, 2> rest = {json_.Rule({}), json_.Rule({})};
  for (auto it = properties.rbegin(); it != properties.rend(); ++it) {
    MM01_ASSIGN_OR_RETURN(const int32_t value,
                          Value(it.value(), where + "/properties/" + it.key(), depth + 1));
    const int32_t member = json_.Member(json_.Text(JsonText(it.key())), value);
    const std::array<int32_t, 2> here = {g_.NewRule(), g_.NewRule()};
    Symbols comma;
    g_.AppendText(",", &comma);
    comma.insert(comma.end(),
                 {Grammar::Call(json_.blank()), Grammar::Call(member), Grammar::Call(rest[0])});
    g_.Add(here[0], comma);
    g_.Add(here[1], {Grammar::Call(member), Grammar::Call(rest[0])});
    if (required.count(it.key()) == 0) {
      g_.Add(here[0], {Grammar::Call(rest[0])});
      g_.Add(here[1], {Grammar::Call(rest[1])});
    }
    rest = here;
  }
  Symbols object;
  g_.AppendText("{", &object);
  object.push_back(Grammar::Call(rest[1]));
  g_.AppendText("}", &object);
  return json_.Rule(object);
}

Result<int32_t> SchemaCompiler::Array(const Json& schema, const std::string& where, int depth) {
  MM01_ASSIGN_OR_RETURN(const int64_t min, Count(schema, "minItems", 0, where));
  MM01_ASSIGN_OR_RETURN(int64_t max, Count(schema, "maxItems", -1, where));
  std::vector<int32_t> first;
  if (schema.contains("prefixItems")) {
    if (!schema["prefixItems"].is_array()) return Wrong(where, "has prefixItems that are no list");
    for (const Json& item : schema["prefixItems"]) {
      MM01_ASSIGN_OR_RETURN(const int32_t rule, Value(item, where + "/prefixItems", depth + 1));
      first.push_back(rule);
    }
  }
  const auto num_first = static_cast<int64_t>(first.size());
  int32_t item = json_.any();
  if (schema.contains("items") && schema["items"] == false) {
    max = max < 0 ? num_first : std::min(max, num_first);
  } else if (schema.contains("items")) {
    MM01_ASSIGN_OR_RETURN(item, Value(schema["items"], where + "/items", depth + 1));
  }
  if (max >= 0 && max < min) return Wrong(where, "has a maxItems below its minItems");
  if (min == 0 && max < 0 && first.empty()) return json_.List("[", item, "]");
  // rest: what may follow after i items, from the last i on.
  const auto with_comma = [&](int32_t value, int32_t rest, bool is_first) {
    Symbols s;
    if (!is_first) {
      g_.AppendText(",", &s);
      s.push_back(Grammar::Call(json_.blank()));
    }
    s.insert(s.end(), {Grammar::Call(value), Grammar::Call(rest)});
    return s;
  };
  const int64_t last = max >= 0 ? max : std::max<int64_t>({min, num_first, 1});
  int32_t rest = json_.Rule({});
  if (max < 0) {
    rest = g_.NewRule();
    g_.Add(rest, with_comma(item, rest, false));
    g_.Add(rest, {});
  }
  for (int64_t i = last - 1; i >= 0 && g_.size() < kMaxGrammarSize; --i) {
    const int32_t value = i < num_first ? first[static_cast<size_t>(i)] : item;
    const int32_t here = g_.NewRule();
    g_.Add(here, with_comma(value, rest, i == 0));
    if (i >= min) g_.Add(here, {});
    rest = here;
  }
  Symbols array;
  g_.AppendText("[", &array);
  array.push_back(Grammar::Call(rest));
  g_.AppendText("]", &array);
  return json_.Rule(array);
}

}  // namespace

Result<std::shared_ptr<const Grammar>> CompileGrammar(
    const std::vector<std::vector<GrammarPart>>& alternatives) {
  auto grammar = std::make_shared<Grammar>();
  JsonRules json(*grammar);
  const int32_t start = grammar->NewRule();
  for (const auto& parts : alternatives) {
    Symbols sequence;
    for (const GrammarPart& part : parts) {
      if (part.schema == nullptr) {
        grammar->AppendText(part.text, &sequence);
        continue;
      }
      if (const size_t bytes = part.schema->dump().size(); bytes > kMaxSchemaBytes) {
        return Status::TooLarge(fmt::format("the schema has {} bytes, at most {} are followed",
                                            bytes, kMaxSchemaBytes));
      }
      MM01_ASSIGN_OR_RETURN(const int32_t value,
                            SchemaCompiler(*grammar, json, *part.schema).Compile());
      sequence.push_back(Grammar::Call(value));
    }
    grammar->Add(start, sequence);
  }
  if (grammar->size() > kMaxGrammarSize) {
    return Status::TooLarge("the schema allows too many different texts to be followed");
  }
  grammar->Finish(start);
  if (grammar->rules()[static_cast<size_t>(start)].height >= Grammar::kMaxStack) {
    return Status::Invalid("the schema allows no value that ends, or none flat enough");
  }
  return std::shared_ptr<const Grammar>(std::move(grammar));
}

Result<std::shared_ptr<const Grammar>> CompileSchema(const Json& schema) {
  return CompileGrammar({{{.schema = &schema}}});
}

}  // namespace mm01::infer
