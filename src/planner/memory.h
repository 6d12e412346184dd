// How much memory a model takes before any of it is taken, and how much of it one token touches.
//
// weights     every projection, expert, embedding and head as the weight type says, rows rounded up
// to
//             the panels of kernels/gemm/weight.h: 4 or 2 bytes an element, or 1 and a bf16 scale a
//             group. Norms and router stay float32.
// state       a lightning layer and sequence: heads x (d x d state + k and v of one block of 64
//             tokens), float32; on a GPU k and v are bf16 beside weights that are not float32. The
//             same for every length of context.
// KV cache    a softmax layer and sequence: 2 x kv heads x d elements a token, in pages of 64
// tokens. workspace   activations of one chunk, float32 or as k and v above, and the logits of one
// token a sequence.
//
// Not counted: the program, its threads' tiles, the tokenizer, and headers of the checkpoint;
// together below 100 MiB.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "model/text01/config.h"
#include "model/text01/tensor_names.h"  // WeightType

namespace mm01 {

// KV is kept as exact as the weights are: float32 beside float32, else bf16.
DType DefaultKvType(const WeightType& weights);

struct MemoryOptions {
  WeightType weights;
  DType kv = DType::kF32;         // kF32 or kBF16
  int64_t context_tokens = 4096;  // of each sequence
  int64_t num_sequences = 1;
  int64_t chunk_rows = 512;  // tokens that one step of prefill takes
  Device device = Device::kCpu;
};

// In bytes.
struct MemoryPlan {
  int64_t weights = 0;
  int64_t state = 0;
  int64_t kv = 0;
  int64_t workspace = 0;

  int64_t total() const { return weights + state + kv + workspace; }
  // One line for each part and the total, each with its newline.
  std::string ToTable() const;
};

// Errors: Invalid for counts below 1, TooLarge where bytes do not fit an int64_t.
Result<MemoryPlan> PlanMemory(const TextConfig& config, const MemoryOptions& options);

// TooLarge, with the numbers, where the plan needs more than `available_bytes`.
Status CheckFits(const MemoryPlan& plan, int64_t available_bytes);

// What decoding one token of one sequence has to read, in bytes; divided by the bandwidth of the
// memory it is the time below which no token can be made.
struct BytesTouched {
  int64_t weights = 0;  // activated ones, one row of the embedding, all of lm_head
  int64_t state = 0;    // the lightning state and the rows since the last border
  int64_t kv = 0;

  int64_t total() const { return weights + state + kv; }
};

// For the token that makes the context `context` >= 1 tokens long, a length that PlanMemory
// accepts. Writes are left out: one row of the caches, and the lightning state at one token of 64.
BytesTouched BytesTouchedPerToken(const TextConfig& config, const WeightType& weights, DType kv,
                                  int64_t context);

}  // namespace mm01
