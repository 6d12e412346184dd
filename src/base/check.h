// We are wrong: two calls of our own disagree. Check throws Bug, in release builds too; a server
// turns it into an error of that request and goes on.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace mm01 {

class Bug : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] inline void Fail(std::string_view what,
                              std::source_location where = std::source_location::current()) {
  throw Bug(std::string(where.file_name()) + ":" + std::to_string(where.line()) + ": " +
            std::string(what));
}

inline void Check(bool condition, std::string_view what,
                  std::source_location where = std::source_location::current()) {
  if (!condition) [[unlikely]] {
    Fail(what, where);
  }
}

}  // namespace mm01
