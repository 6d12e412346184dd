// Which tensors a configuration needs, and where a checkpoint keeps them.
//
// A tensor is wanted under its name in the original checkpoint, shape [out, in]. Accepted in its
// place:
//   block_sparse_moe.* as mlp.*                      the port's name for the expert layer
//   *.experts.gate_up_proj [E, 2F, D]                w1 (rows 0 .. F-1) and w3 (F .. 2F-1) of all
//   experts
//   *.experts.down_proj [E, D, F]                    w2 of all experts
//   language_model.NAME                              every tensor of a vision-language checkpoint
//   NAME int8 with NAME_scale bf16                   quantized: scale has the shape of NAME but for
//   the
//                                                    last dim, which is ceil(in / group) for a
//                                                    group of 32, 64 or 128
// A dense FFN is mlp.{gate,up,down}_proj, a shared expert shared_mlp.{gate,up,down}_proj with
// coefficient [1, D], each with .weight.
//
// Letters   D hidden size, E experts, F width of one expert.
// Cost      linear in the wanted and the stored tensors; no file is touched.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "kernels/gemm/weight.h"
#include "model/text01/config.h"
#include "tensor/dtype.h"

namespace mm01 {

// "model.layers.LAYER.WHAT.weight", the name of a wanted tensor of one layer.
std::string LayerTensorName(int64_t layer, std::string_view what);
// The same for one expert; `matrix` is w1, w2 or w3.
std::string ExpertTensorName(int64_t layer, int64_t expert, std::string_view matrix);

inline constexpr const char* kEmbeddingName = "model.embed_tokens.weight";
inline constexpr const char* kFinalNormName = "model.norm.weight";
inline constexpr const char* kLmHeadName = "lm_head.weight";

// One place that may hold a wanted tensor: rows first_row .. of tensor `name`, whose shape is
// `shape`.
struct TensorSource {
  std::string name;
  std::vector<int64_t> shape;
  int64_t first_row = 0;  // all dims but the last counted as rows
};

struct WantedTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool is_weight = false;  // a projection, expert, embedding or head: may be int8. Else float.
  std::vector<TensorSource>
      sources;  // in the order they are looked for; the first is the tensor itself
};

// In the order of the forward pass, the tensors of a layer together. A configuration with tied
// embeddings wants no lm_head.
std::vector<WantedTensor> WantedTensors(const TextConfig& config);

// A tensor as a checkpoint's headers describe it.
struct StoredTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

// Where a wanted tensor is: `rows` rows of `columns` elements, from `first_row` of tensor `source`
// on. A vector is one row.
struct TensorLocation {
  std::string source;
  DType dtype = DType::kF32;  // kF32, kBF16, kF16, or kI8 with scales
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t columns = 0;
  std::string scale;  // the tensor of scales of `source`, or empty; its rows are those of `source`
  int64_t group = 0;  // columns a scale is for; 0 without scales
};

using TensorMap = std::unordered_map<std::string, TensorLocation>;  // by wanted name

// Finds every tensor that `config` needs among `stored`, and accounts for every stored one. Ignored
// are buffers that the port computes (slope_rate, query_decay, key_decay, diagonal_decay), the
// lm_head of tied embeddings, and beside language_model.* the vision tower. Errors name up to three
// tensors and count the others: tensors stored twice, of wrong shape or type (Invalid), missing
// (NotFound), and tensors that have no place in the configuration (Invalid). `where` names the
// checkpoint in them.
Result<TensorMap> LocateTensors(const TextConfig& config, std::span<const StoredTensor> stored,
                                const std::string& where);

}  // namespace mm01
