// The grid of ranks that one model runs on.
//
//   rank of the world = sequence rank * T + tensor rank       T tensor ranks, S sequence ranks
//
// Attention splits its heads over the tensor group and a prompt's tokens over the sequence group;
// the experts lie over a group of their own, which need not follow that grid (minimax-01, layout of
// MoE apart from attention). Neighbours in a tensor group are neighbours in the world, since they
// talk the most.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"
#include "comm/group.h"
#include "tensor/tensor.h"

namespace mm01 {

// Items begin .. end-1.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

// Part `rank` of n items in `size` contiguous parts, in order. Sizes differ by one at most; the
// first n mod size parts are the longer ones.
Range SplitEvenly(int64_t n, int64_t size, int64_t rank);

struct MeshSizes {
  int tensor = 1;
  int expert = 1;
  int sequence = 1;

  // Whether a world of `world_size` ranks can be laid out so: tensor * sequence is the whole world,
  // and expert is 1, `tensor` or the whole world.
  Status Validate(int world_size) const;
};

// What a forward pass is told. Borrows; no pointer is ever null.
struct Mesh {
  Group* tensor;
  Group* expert;
  Group* sequence;

  // One rank: three groups of one, which live as long as the program.
  static Mesh Single();
};

// The sum over a group's ranks, in place, of a contiguous tensor of float32. In a group of one the
// tensor may be of any type and on any device: it stays as it is.
void SumOverRanks(Group& group, const Tensor& tensor);

// Owns the groups of a mesh, except the world, which has to outlive it.
class MeshGroups {
 public:
  // Called by every rank of `world` with the same sizes. Sizes that do not fit are an error on
  // every rank, and no rank has talked to another by then.
  //
  //   expert = 1       each rank holds every expert
  //   expert = tensor  experts are split over the tensor group
  //   expert = world   experts are split over all ranks
  static Result<MeshGroups> Make(Group& world, const MeshSizes& sizes);

  const Mesh& mesh() const { return mesh_; }

 private:
  MeshGroups() = default;

  std::unique_ptr<Group> tensor_;
  std::unique_ptr<Group> sequence_;
  Mesh mesh_ = Mesh::Single();
};

}  // namespace mm01
