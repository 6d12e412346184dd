// A checkpoint in another type: int8 with scales, bf16 or float32.
//
// Every projection, expert, embedding and head (WantedTensor::is_weight) is written as the type
// says, int8 as NAME [N, K] beside NAME_scale [N, ceil(K / group)] bf16; routers and norms stay as
// they are stored. Names are those of the original checkpoint, whatever form the input has, and
// only tensors that the configuration needs are written. config.json, tokenizer files and chat
// template are copied.
//
// Memory    a block of rows, some 10 MB, whatever the model's size.
// Errors    those of reading the checkpoint; Invalid where `out_dir` is there and not empty,
// TooLarge
//           where the disk has no room, Io, Cancelled. After an error nothing is left behind: files
//           appear whole and the index last, so a folder that is not finished is no checkpoint.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/status.h"
#include "device/queue.h"
#include "kernels/gemm/weight.h"

namespace mm01 {

struct ConvertOptions {
  WeightType type;
  int64_t shard_bytes = int64_t{4} << 30;  // of data in one file; a larger tensor has its own
  // Bytes written and in all. False stops.
  std::function<bool(int64_t done, int64_t total)> progress;
};

struct ConvertReport {
  int64_t num_tensors = 0;  // scales counted
  int64_t num_files = 0;    // of tensors
  int64_t bytes = 0;        // of tensors
};

Result<ConvertReport> ConvertCheckpoint(Queue& queue, const std::string& model_dir,
                                        const std::string& out_dir, const ConvertOptions& options);

}  // namespace mm01
