// What this program was built from, for the receipt of the GPU's bench. In builds with CUDA only;
// cmake/receipt.cmake writes the definitions.
#pragma once

namespace mm01::cli {

extern const char* const kBuiltCommit;       // as git names it; empty without git
extern const char* const kBuiltCudaSources;  // what tools/cuda_sources.sh prints

}  // namespace mm01::cli
