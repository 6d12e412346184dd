// Typed access to the fields of a TOML table from a user's file. Included by recipe_parse.cc alone:
// toml++ is heavy.
//
// The first error of a file stays, with the line it is on; a getter that failed returns what
// `absent` says, or the least value that is allowed. Finish reports a field that nobody asked for.
#pragma once

#include <fmt/format.h>

#include <toml++/toml.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace mm01::train {

template <typename T>
struct Bounds {
  T min;
  T max;
};

class TomlReader {
 public:
  // `prefix` is put before a field's name in errors: "stage.". All must outlive this.
  TomlReader(const toml::table& table, std::string prefix, const std::string& where, Status* status)
      : table_(table), prefix_(std::move(prefix)), where_(where), status_(status) {}

  const toml::node* Find(std::string_view key) {
    known_.insert(std::string(key));
    return table_.get(key);
  }
  bool Has(std::string_view key) { return Find(key) != nullptr; }

  int64_t Int(std::string_view key, std::optional<int64_t> absent, Bounds<int64_t> bounds) {
    const toml::node* node = Required(key, absent.has_value());
    return node ? IntOf(key, *node, bounds) : absent.value_or(bounds.min);
  }

  double Real(std::string_view key, std::optional<double> absent, Bounds<double> bounds) {
    const toml::node* node = Required(key, absent.has_value());
    return node ? RealOf(key, *node, bounds) : absent.value_or(bounds.min);
  }

  bool Bool(std::string_view key, bool absent) {
    const toml::node* node = Find(key);
    if (node == nullptr) return absent;
    if (!node->is_boolean()) Wrong(key, *node, "true or false");
    return node->value_or(absent);
  }

  std::string Text(std::string_view key, std::optional<std::string> absent) {
    const toml::node* node = Required(key, absent.has_value());
    if (node == nullptr) return absent.value_or("");
    if (!node->is_string()) Wrong(key, *node, "a string");
    return node->value_or(std::string());
  }

  // The index of the choice.
  size_t Choice(std::string_view key, const std::vector<std::string>& choices, size_t absent) {
    const toml::node* node = Find(key);
    if (node == nullptr) return absent;
    const std::string text = node->value_or(std::string());
    for (size_t i = 0; i < choices.size(); ++i) {
      if (node->is_string() && choices[i] == text) return i;
    }
    Wrong(key, *node, fmt::format("one of {}", fmt::join(choices, ", ")));
    return absent;
  }

  // A whole number, or an array of two: least and most.
  std::pair<int64_t, int64_t> Range(std::string_view key,
                                    std::optional<std::pair<int64_t, int64_t>> absent,
                                    Bounds<int64_t> bounds) {
    const toml::node* node = Required(key, absent.has_value());
    if (node == nullptr) return absent.value_or(std::pair{bounds.min, bounds.min});
    const toml::array* pair = node->as_array();
    if (pair == nullptr) {
      const int64_t n = IntOf(key, *node, bounds);
      return {n, n};
    }
    if (pair->size() != 2) {
      Wrong(key, *node, "a whole number, or an array of two");
      return {bounds.min, bounds.min};
    }
    const int64_t min = IntOf(key, *pair->get(0), bounds), max = IntOf(key, *pair->get(1), bounds);
    if (min > max) Wrong(key, *node, "an array of two of which the first is not larger");
    return {min, max};
  }

  std::vector<int64_t> Ints(std::string_view key, Bounds<int64_t> bounds) {
    std::vector<int64_t> values;
    const toml::node* node = Find(key);
    if (node == nullptr) return values;
    if (const toml::array* array = node->as_array()) {
      for (const toml::node& item : *array) values.push_back(IntOf(key, item, bounds));
    } else {
      Wrong(key, *node, "an array of whole numbers");
    }
    return values;
  }

  // A table; an empty one where it is absent.
  const toml::table& Table(std::string_view key) {
    static const toml::table kEmpty;
    const toml::node* node = Find(key);
    if (node == nullptr) return kEmpty;
    if (const toml::table* table = node->as_table()) return *table;
    Wrong(key, *node, "a table");
    return kEmpty;
  }

  // The tables of [[key]].
  std::vector<const toml::table*> Tables(std::string_view key) {
    std::vector<const toml::table*> tables;
    const toml::node* node = Find(key);
    if (node == nullptr) return tables;
    if (const toml::array* array = node->as_array()) {
      for (const toml::node& item : *array) {
        if (!item.is_table()) Wrong(key, item, "tables");
        if (item.is_table()) tables.push_back(item.as_table());
      }
    } else {
      Wrong(key, *node, fmt::format("tables, each under [[{}]]", key));
    }
    return tables;
  }

  int64_t IntOf(std::string_view key, const toml::node& node, Bounds<int64_t> bounds) {
    const auto value = node.is_integer() ? node.value<int64_t>() : std::nullopt;
    if (value && bounds.min <= *value && *value <= bounds.max) return *value;
    Wrong(key, node,
          bounds.max == std::numeric_limits<int64_t>::max()
              ? fmt::format("a whole number from {}", bounds.min)
              : fmt::format("a whole number from {} to {}", bounds.min, bounds.max));
    return bounds.min;
  }

  double RealOf(std::string_view key, const toml::node& node, Bounds<double> bounds) {
    const auto value = node.is_number() ? node.value<double>() : std::nullopt;
    if (value && bounds.min <= *value && *value <= bounds.max) return *value;
    Wrong(key, node, fmt::format("a number from {} to {}", bounds.min, bounds.max));
    return bounds.min;
  }

  void Wrong(std::string_view key, const toml::node& node, std::string_view wanted) {
    Error(node, fmt::format("{}{} is {}, wanted {}", prefix_, key, Quote(node), wanted));
  }
  void Error(const toml::node& node, std::string_view what) {
    if (status_->ok()) {
      *status_ = Status::Invalid(fmt::format("{}:{}: {}", where_, node.source().begin.line, what));
    }
  }
  // Of the table itself.
  void Error(std::string_view what) { Error(table_, what); }

  void Finish() {
    for (const auto& [key, node] : table_) {
      const std::string name(key.str());
      if (known_.contains(name)) continue;
      Error(node, fmt::format("{}{} is no field, wanted one of {}", prefix_, name,
                              fmt::join(known_, ", ")));
    }
  }

 private:
  const toml::node* Required(std::string_view key, bool may_be_absent) {
    const toml::node* node = Find(key);
    if (node == nullptr && !may_be_absent) {
      Error(fmt::format("{}{} is missing", prefix_, key));
    }
    return node;
  }

  static std::string Quote(const toml::node& node) {
    if (const auto text = node.value<std::string>(); node.is_string()) return "'" + *text + "'";
    if (node.is_integer()) return fmt::format("{}", node.value_or(int64_t{0}));
    if (node.is_floating_point()) return fmt::format("{}", node.value_or(0.0));
    if (node.is_boolean()) return node.value_or(false) ? "true" : "false";
    if (node.is_array()) return "an array";
    return node.is_table() ? "a table" : "a date";
  }

  const toml::table& table_;
  std::string prefix_;
  const std::string& where_;
  Status* status_;
  std::set<std::string> known_;
};

}  // namespace mm01::train
