#include "base/json.h"

#include <fmt/format.h>

#include <unordered_set>
#include <utility>
#include <vector>

namespace mm01 {
namespace {

// Builds the value itself: nlohmann's own builder looks through an ordered object for every key
// that is added, which a vocabulary of 200,000 entries makes minutes.
class Builder : public JsonEvents {
 public:
  explicit Builder(int max_depth) : max_depth_(max_depth) {}

  bool null() override { return Add(nullptr); }
  bool boolean(bool v) override { return Add(v); }
  bool number_integer(number_integer_t v) override { return Add(v); }
  bool number_unsigned(number_unsigned_t v) override { return Add(v); }
  bool number_float(number_float_t v, const string_t&) override { return Add(v); }
  bool string(string_t& v) override { return Add(std::move(v)); }
  bool binary(binary_t& v) override { return Add(std::move(v)); }
  bool start_object(std::size_t) override {
    keys_.emplace_back();
    return Open(Json::object());
  }
  bool end_object() override {
    keys_.pop_back();
    open_.pop_back();
    return true;
  }
  bool start_array(std::size_t) override { return Open(Json::array()); }
  bool end_array() override {
    open_.pop_back();
    return true;
  }
  bool key(string_t& k) override {
    if (!keys_.back().insert(k).second) {
      error = fmt::format("the key \"{}\" stands twice in one object", k.substr(0, 100));
      return false;
    }
    key_ = std::move(k);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    // nlohmann's text begins with its own name for the error and the place, ended by ": ".
    const std::string_view what = e.what();
    const size_t place = what.find(": ");
    error = fmt::format("not JSON at byte {}: {}", position,
                        (place == what.npos ? what : what.substr(place + 2)).substr(0, 200));
    return false;
  }

  Json root;
  std::string error;

 private:
  using Members = std::vector<std::pair<const std::string, Json>>;

  Json& Place(Json value) {
    if (open_.empty()) return root = std::move(value);
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return parent.back();
    }
    Members& members = parent.get_ref<Json::object_t&>();
    return members.emplace_back(std::move(key_), std::move(value)).second;
  }
  bool Add(Json value) {
    Place(std::move(value));
    return true;
  }
  bool Open(Json container) {
    if (static_cast<int>(open_.size()) >= max_depth_) {
      error = fmt::format("nested deeper than {} levels", max_depth_);
      return false;
    }
    open_.push_back(&Place(std::move(container)));
    return true;
  }

  int max_depth_;
  std::vector<Json*> open_;  // each the newest member of the one before, so none of them moves
  std::vector<std::unordered_set<std::string>> keys_;
  std::string key_;
};

}  // namespace

Result<Json> ParseJson(std::string_view text, const std::string& where, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return Status::TooLarge(fmt::format("{}: {} bytes of JSON, at most {} are read", where,
                                        text.size(), limits.max_bytes));
  }
  // nlohmann takes a byte 0 for the end of the text.
  if (const size_t zero = text.find('\0'); zero != text.npos) {
    return Status::Invalid(fmt::format("{}: not JSON at byte {}: a byte 0", where, zero));
  }
  Builder builder(limits.max_depth);
  if (!ReadJsonEvents(text, &builder)) {
    return Status::Invalid(where + ": " + builder.error);
  }
  return std::move(builder.root);
}

bool ReadJsonEvents(std::string_view text, JsonEvents* events) {
  return Json::sax_parse(text.begin(), text.end(), events);
}

bool IsJson(std::string_view text) {
  return Json::accept(text.begin(), text.end());
}

std::string JsonText(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace mm01
