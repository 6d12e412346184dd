#include "parallel/mesh.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/check.h"

namespace mm01 {

Range SplitEvenly(int64_t n, int64_t size, int64_t rank) {
  Check(n >= 0 && 0 <= rank && rank < size, "SplitEvenly needs n >= 0 and 0 <= rank < size");
  const int64_t part = n / size;
  const int64_t longer = n % size;
  const int64_t begin = rank * part + std::min(rank, longer);
  return {begin, begin + part + (rank < longer ? 1 : 0)};
}

Status MeshSizes::Validate(int world_size) const {
  if (tensor < 1 || expert < 1 || sequence < 1) {
    return Status::Invalid(
        fmt::format("the mesh is tensor {} x sequence {} with expert {}, each must be 1 or more",
                    tensor, sequence, expert));
  }
  if (int64_t{tensor} * sequence != world_size) {
    return Status::Invalid(
        fmt::format("the mesh is tensor {} x sequence {}, which is {} ranks, but {} "
                    "run",
                    tensor, sequence, int64_t{tensor} * sequence, world_size));
  }
  if (expert != 1 && expert != tensor && expert != world_size) {
    return Status::Unsupported(
        fmt::format("experts are split over {} ranks, wanted 1, the tensor group's {} or all {}",
                    expert, tensor, world_size));
  }
  return Status::Ok();
}

Mesh Mesh::Single() {
  static SingleGroup* const alone =
      new SingleGroup;  // never destroyed: others may still use it then
  return {alone, alone, alone};
}

Result<MeshGroups> MeshGroups::Make(Group& world, const MeshSizes& sizes) {
  MM01_RETURN_IF_ERROR(sizes.Validate(world.size()));
  MeshGroups groups;
  groups.tensor_ = world.Split(world.rank() / sizes.tensor, world.rank());
  groups.sequence_ = world.Split(world.rank() % sizes.tensor, world.rank());
  groups.mesh_.tensor = groups.tensor_.get();
  groups.mesh_.sequence = groups.sequence_.get();
  if (sizes.expert == world.size()) {
    groups.mesh_.expert = &world;
  } else if (sizes.expert == sizes.tensor) {
    groups.mesh_.expert = groups.tensor_.get();
  }
  return groups;
}

void SumOverRanks(Group& group, const Tensor& tensor) {
  if (group.size() == 1) return;
  Check(tensor.dtype == DType::kF32, "ranks add float32");
  group.AllReduceSum({static_cast<float*>(tensor.data), static_cast<size_t>(tensor.size())});
}

}  // namespace mm01
