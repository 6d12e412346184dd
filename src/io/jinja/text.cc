#include "io/jinja/text.h"

#include <string.h>

#include <algorithm>

namespace mm01::jinja {
namespace {

// What a call costs besides its bytes: texts that grow letter by letter pay for each letter.
constexpr size_t kBytesPerCall = 16;

// At most this many comparisons for a byte are taken as linear.
constexpr size_t kShortNeedle = 16;

}  // namespace

bool Text::AllTrusted() const {
  return std::all_of(runs.begin(), runs.end(), [](const Run& r) { return r.trusted; });
}

void Borrow(std::string_view bytes, bool trusted, Text& text) {
  text.view = bytes;
  if (!bytes.empty()) text.runs = {{bytes.size(), trusted}};
}

void Own(std::string bytes, bool trusted, Text& text) {
  text.owned = std::move(bytes);
  Borrow(text.owned, trusted, text);
}

void TextBuilder::Append(std::string_view bytes, bool trusted) {
  if (bytes.empty() || full_) return;
  if (bytes.size() > kMaxTextBytes - bytes_.size() ||
      !budget_->Bytes(bytes.size() + kBytesPerCall)) {
    full_ = true;
    return;
  }
  bytes_.append(bytes);
  if (runs_.empty() || runs_.back().trusted != trusted) runs_.push_back({0, trusted});
  runs_.back().end = bytes_.size();
}

void TextBuilder::Append(const Text& text, size_t begin, size_t end) {
  auto run = std::upper_bound(text.runs.begin(), text.runs.end(), begin,
                              [](size_t at, const Run& r) { return at < r.end; });
  for (; begin < end; ++run) {
    const size_t stop = std::min(run->end, end);
    Append(text.view.substr(begin, stop - begin), run->trusted);
    begin = stop;
  }
}

void TextBuilder::MoveTo(Text& text) {
  text.owned = std::move(bytes_);
  text.view = text.owned;
  text.runs = std::move(runs_);
}

size_t CountCodePoints(std::string_view s) {
  return std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

size_t OffsetOf(std::string_view s, size_t index) {
  size_t pos = 0;
  for (; index > 0 && pos < s.size(); --index) {
    do {
      ++pos;
    } while (pos < s.size() && (s[pos] & 0xc0) == 0x80);
  }
  return pos;
}

size_t Find(std::string_view s, std::string_view needle, size_t from) {
  if (from > s.size()) return std::string_view::npos;
  if (needle.size() <= kShortNeedle) return s.find(needle, from);
  // glibc's memmem is linear at worst, which string_view::find is not.
  const void* hit = memmem(s.data() + from, s.size() - from, needle.data(), needle.size());
  return hit ? static_cast<size_t>(static_cast<const char*>(hit) - s.data())
             : std::string_view::npos;
}

}  // namespace mm01::jinja
