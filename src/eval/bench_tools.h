// What the benches share.
#pragma once

#include <cstdint>
#include <vector>

#include "model/text01/config.h"

namespace mm01::eval {

double Now();  // seconds, of a clock that only goes forward

// Token ids below `vocabulary`: a function of the arguments.
std::vector<int32_t> RandomTokens(uint64_t stream, int64_t count, int64_t vocabulary);

// Some layers at MiniMax-Text-01's widths.
TextConfig Text01Layers(std::vector<LayerKind> layers, int64_t vocabulary);

}  // namespace mm01::eval
