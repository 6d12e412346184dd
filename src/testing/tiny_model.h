// Small random checkpoints on disk, in every form that is read. For tests only.
//
// A tensor's values are a function of its name in the original checkpoint, so that all forms of one
// configuration hold the same model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "kernels/gemm/weight.h"
#include "model/text01/config.h"
#include "model/text01/tensor_names.h"
#include "tensor/dtype.h"
#include "testing/temp_folder.h"

namespace mm01 {

// Lightning, lightning, softmax, lightning; 4 experts, 2 a token; sizes that no two share.
TextConfig TinyConfig();

// Ids that are a function of the place alone.
std::vector<int32_t> TinyTokens(int64_t count, int64_t vocab_size = 96, uint64_t seed = 1);

// One tensor as a file holds it.
struct TinyTensor {
  TensorInfo info;
  std::vector<std::byte> data;
};

// By name, so that tests can take one away, add one, or spoil it.
using TinyTensors = std::map<std::string, TinyTensor>;

enum class TinyNames {
  kOriginal,
  kPort,           // experts fused
  kPortPerExpert,  // mlp.experts.E.w1.weight
};

struct TinyForm {
  TinyNames names = TinyNames::kOriginal;
  WeightType type;             // of projections, experts, embedding and head
  bool rounded = false;        // the values are those of bf16, whatever the type
  std::string prefix;          // before every name
  bool decay_buffers = false;  // as older versions of the port store them
};

std::vector<float> TinyValues(const WantedTensor& wanted, bool rounded);

// Room for a tensor of that name and shape, or the one that is there.
TinyTensor& TinyRoom(TinyTensors& all, const std::string& name, DType dtype,
                     const std::vector<int64_t>& shape);

template <typename T>
void TinyPut(TinyTensor& tensor, int64_t first, const std::vector<T>& values) {
  if (values.empty()) return;  // memcpy takes no null pointer, of no bytes either
  std::memcpy(tensor.data.data() + static_cast<size_t>(first) * sizeof(T), values.data(),
              values.size() * sizeof(T));
}

TinyTensors MakeTinyTensors(const TextConfig& config, const TinyForm& form = {});

void WriteTinyFile(const std::string& path, const std::vector<const TinyTensor*>& tensors);

// config.json beside model.safetensors, or beside an index and shards that deal the tensors out in
// turn.
void WriteTinyCheckpoint(const std::string& folder, const TextConfig& config,
                         const TinyTensors& tensors, int num_shards = 1);

void WriteTinyModel(const std::string& folder, const TextConfig& config, const TinyForm& form = {});

// The 256 bytes as ids 0 to 255, "he" as 256, and the special token <end> as 257.
void WriteTinyTokenizer(const std::string& folder);

}  // namespace mm01
