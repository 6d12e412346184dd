// Checkpoints of a run: tensors as global ranges, whatever the number of ranks that wrote them.
//
//   RUN/checkpoints/step-00000100/
//     rank-00000.safetensors   the ranges of rank 0: KIND/NAME float32 [end - begin]
//     rank-00000.json          of each: global name, begin, end, size of the whole, XXH3-128
//     manifest.json            state of the run; of each rank's .json its XXH3-128
//     DONE                     XXH3-128 of manifest.json; written last
//
// A checkpoint is gathered under step-00000100.tmp, each file brought to the disk, DONE last, and
// then takes its name, in exchange for a checkpoint of that step where there is one. So what has
// its name and a DONE that fits is whole, whenever the machine stops; the rest is no checkpoint,
// and the next save clears it away. Errors    Invalid where a checkpoint is damaged: every byte of
// it is hashed. Io.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "comm/group.h"
#include "device/queue.h"
#include "io/safetensors.h"
#include "tensor/tensor.h"

namespace mm01::train {

// Elements begin .. begin + data.size() - 1 of the global tensor `name`, which has `size` in all.
struct TensorRange {
  std::string name;
  int64_t begin = 0;
  int64_t size = 0;
  Tensor data;  // float32 [n], on the queue's device
};

struct CheckpointKeep {
  int64_t last = 2;
  int64_t every = 0;  // 0: none for good
};

// Called by all ranks with the same folder, step and state, each with its own ranges. All get an
// error if one has. Then checkpoints that need not be kept are removed.
Status WriteCheckpoint(Queue& queue, Group& group, const std::string& folder, int64_t step,
                       const Json& state, std::span<const TensorRange> mine,
                       const CheckpointKeep& keep);

// Steps whose folder is there, newest first, whether whole or not.
std::vector<int64_t> ListCheckpoints(const std::string& folder);

class SavedCheckpoint {
 public:
  // Checks DONE, manifest and headers; no tensor is read.
  static Result<SavedCheckpoint> Open(const std::string& folder, int64_t step);

  const std::string& path() const { return path_; }
  const Json& state() const { return state_; }

  // Reads every byte and checks its hash.
  Status Verify() const;
  // Elements begin .. begin + out.size() - 1 of a global tensor of `size` elements, checked.
  Status Read(const std::string& name, int64_t size, int64_t begin, std::span<float> out) const;

 private:
  struct Part {
    size_t file = 0;
    std::string tensor;
    int64_t begin = 0;
    int64_t end = 0;
    int64_t size = 0;
    std::string digest;
  };
  Status OpenRank(const std::string& name, const std::string& digest);
  Result<std::vector<float>> ReadPart(const Part& part) const;

  std::string path_;
  Json state_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::vector<Part>> parts_;  // by global name
};

// The newest checkpoint of the folder that is whole and verified; a false step where there is none.
// `notes` gets a sentence for each that was refused.
struct Newest {
  int64_t step = -1;
  std::vector<std::string> notes;
};
Newest FindNewest(const std::string& folder);

}  // namespace mm01::train
