// The weights of a text model, or one rank's share of them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/queue.h"
#include "io/checkpoint.h"
#include "kernels/gemm/weight.h"
#include "kernels/moe/moe.h"
#include "model/text01/config.h"
#include "model/text01/tensor_names.h"
#include "parallel/mesh.h"

namespace mm01 {

// What one rank holds. Query heads are split evenly over the tensor group; a rank has the kv heads
// that its query heads read, shared with a neighbour where ranks outnumber them. The router, norms,
// embedding and head are everywhere.
struct Shard {
  Range heads;
  Range kv_heads;
  Range experts;

  static Shard Whole(const TextConfig& config);
  // Errors: heads or experts that the ranks do not divide.
  static Result<Shard> Of(const TextConfig& config, const Mesh& mesh);
};

// A vector of parameters, where the kernels of its device read it.
class Parameters {
 public:
  Parameters() = default;
  Parameters(Queue& queue, std::vector<float> values);

  const std::vector<float>& values() const { return values_; }
  Tensor tensor() const;  // [n] float32

 private:
  std::vector<float> values_;
  Buffer copy_;  // on a GPU
};

struct LightningLayer {
  Weight qkv;        // [H 3 d, D]  rows of head h: q, k, v
  Weight gate;       // [H d, D]
  Weight out;        // [D, H d]
  Parameters norm;   // [H d]
  Parameters slope;  // [H]
};

struct SoftmaxLayer {
  Weight q;     // [H d, D]
  Weight k, v;  // [G d, D]
  Weight out;   // [D, H d]
};

struct MlpLayer {
  Weight router;                       // [E, D] float32; empty for a dense FFN
  std::vector<ExpertWeights> experts;  // this rank's; one for a dense FFN
  ExpertWeights shared;                // empty without a shared expert
  Weight shared_coefficient;           // [1, D]
};

struct TextLayer {
  LayerKind kind = LayerKind::kLightning;
  Parameters input_norm;     // [D]
  Parameters mlp_norm;       // [D]
  LightningLayer lightning;  // of the kind that `kind` names; the other is empty
  SoftmaxLayer softmax;
  MlpLayer mlp;
};

struct TextWeights {
  TextConfig config;
  WeightType type;
  Shard shard;
  Weight embedding;  // [V, D]
  std::vector<TextLayer> layers;
  Parameters final_norm;   // [D]
  Weight lm_head;          // [V, D]; empty where the embedding serves
  int64_t vocab_used = 0;  // rows of lm_head that are tokens; the others never win

  int64_t bytes() const;
  Device device() const { return embedding.device(); }
  // What rows between the ops are kept as: float32 on the CPU and beside float32 weights, else
  // bf16.
  DType activations() const {
    const bool exact = device() == Device::kCpu || type.dtype == DType::kF32;
    return exact ? DType::kF32 : DType::kBF16;
  }
  const Weight& head() const { return lm_head.empty() ? embedding : lm_head; }
};

// Bytes read so far and in all.
using LoadProgress = std::function<void(int64_t done, int64_t total)>;

// The type a checkpoint's matrices have: float32, bf16, or int8 with its group.
WeightType StoredWeightType(const TensorMap& map);

// Reads `checkpoint` into the layout of the queue's device piece by piece: beside the weights,
// memory holds 16 rows a thread, or 64 MiB on the way to a GPU. Converts from what is stored to
// `type`; int8 of the same groups is taken over as it is.
Result<TextWeights> LoadWeights(Queue& queue, const Checkpoint& checkpoint,
                                const TextConfig& config, WeightType type, const Shard& shard,
                                const LoadProgress& progress = {});

// One matrix [n, k] of random numbers, whose products with rows of variance 1 have variance 1.
Weight RandomMatrix(Queue& queue, WeightType type, int64_t n, int64_t k, uint64_t seed);
// Weights of the right scale for measuring speed, a function of the seed alone.
TextWeights RandomWeights(Queue& queue, const TextConfig& config, WeightType type, uint64_t seed);

}  // namespace mm01
