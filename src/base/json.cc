#include "base/json.h"

#include <fmt/format.h>

#include <unordered_set>
#include <vector>

namespace mm01 {
namespace {

// Walks the text once before it is built, to refuse depth and repeated keys.
class Guard : public nlohmann::json_sax<Json> {
 public:
  explicit Guard(int max_depth) : max_depth_(max_depth) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override {
    keys_.emplace_back();
    return Enter();
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return true;
  }
  bool start_array(std::size_t) override { return Enter(); }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& k) override {
    if (keys_.back().insert(k).second) return true;
    error = fmt::format("the key \"{}\" stands twice in one object", k.substr(0, 100));
    return false;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    // nlohmann's text begins with its own name for the error and the place, ended by ": ".
    const std::string_view what = e.what();
    const size_t place = what.find(": ");
    error = fmt::format("not JSON at byte {}: {}", position,
                        place == what.npos ? what : what.substr(place + 2));
    return false;
  }

  std::string error;

 private:
  bool Enter() {
    if (++depth_ <= max_depth_) return true;
    error = fmt::format("nested deeper than {} levels", max_depth_);
    return false;
  }

  int max_depth_;
  int depth_ = 0;
  std::vector<std::unordered_set<std::string>> keys_;
};

}  // namespace

Result<Json> ParseJson(std::string_view text, const std::string& where, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return Status::TooLarge(
        fmt::format("{}: {} bytes of JSON, at most {} are read", where, text.size(), limits.max_bytes));
  }
  Guard guard(limits.max_depth);
  if (!Json::sax_parse(text.begin(), text.end(), &guard)) {
    return Status::Invalid(where + ": " + guard.error);
  }
  return Json::parse(text.begin(), text.end());
}

}  // namespace mm01
