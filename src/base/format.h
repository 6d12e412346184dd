// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace mm01 {

std::string FormatBytes(double bytes);  // "1.50 GiB"
std::string FormatByteCount(int64_t bytes);
std::string FormatCount(int64_t n);         // "456,089,655,296"
std::string FormatSeconds(double seconds);  // "0.8 s", "3 min 20 s", "2 h 05 min"

}  // namespace mm01
