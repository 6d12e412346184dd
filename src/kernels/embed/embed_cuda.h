// embed.h on a GPU.
#pragma once

#include "kernels/embed/embed.h"

namespace mm01::cuda {

void Embed(Queue& queue, const EmbedArgs& args);

}  // namespace mm01::cuda
