// The twin of digest.h on a GPU.
#pragma once

#include "kernels/sample/digest.h"

namespace mm01::cuda {

std::vector<Digest> DigestRows(Queue& queue, const DigestArgs& args);

}  // namespace mm01::cuda
