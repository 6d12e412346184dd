// An ordered stream of work on one device. Ops take the queue they run on as their first argument,
// and their tensors lie in the memory of its device.
//
// On the CPU an op has run when it returns. On a GPU it has been put in the queue: Wait says when
// it has run, and throws DeviceError if it failed.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/check.h"
#include "base/thread_pool.h"
#include "device/buffer.h"
#include "tensor/tensor.h"

struct CUstream_st;

namespace mm01 {

using CudaStream = CUstream_st*;

class Queue {
 public:
  // `num_threads` share the loops of the CPU's ops, and of what the CPU does for a GPU.
  explicit Queue(int num_threads, Device device = Device::kCpu);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  Device device() const { return device_; }
  ThreadPool& pool() { return pool_; }
  int num_threads() const { return pool_.num_threads(); }
  int64_t scratch_bytes() const;

  CudaStream stream() const { return stream_; }  // of a GPU's queue
  void Wait();

  // Copies in order with the ops of this queue. To the device: `host` may be reused on return. To
  // the host: the bytes are there on return, so everything before them has run.
  void CopyToDevice(void* device_memory, const void* host, int64_t bytes);
  void CopyToHost(void* host, const void* device_memory, int64_t bytes);
  void CopyOnDevice(void* to, const void* from, int64_t bytes);

 private:
  friend class Scratch;

  struct Chunk {
    Buffer memory;
    int64_t used = 0;
  };

  Device device_;
  ThreadPool pool_;
  std::vector<Chunk> chunks_;  // a stack; one chunk once the sizes have settled
  CudaStream stream_ = nullptr;
};

// Memory for the length of a scope, on the queue's device, taken from the queue and given back in
// reverse order. On a GPU the work put in the queue within the scope may still be running when the
// scope ends: later work of the same queue that gets the same memory comes after it. After the
// first steps of a run no call of Get allocates.
class Scratch {
 public:
  explicit Scratch(Queue& queue);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Uninitialised room for n elements, aligned to 64 bytes (256 on a GPU).
  template <typename T>
  T* Get(int64_t n) {
    return static_cast<T*>(GetBytes(n * static_cast<int64_t>(sizeof(T))));
  }
  // Rows of a matrix.
  Tensor GetRows(DType type, int64_t rows, int64_t width) {
    return Tensor(type, GetBytes(rows * width * SizeOf(type)), {rows, width});
  }

 private:
  void* GetBytes(int64_t bytes);

  Queue& queue_;
  std::size_t num_chunks_;  // what was in use when this scope began
  int64_t used_;
};

}  // namespace mm01

// First line of an op that also runs on a GPU: `call` is its twin in namespace cuda.
#ifdef MM01_CUDA
#define MM01_ON_CUDA(queue, call) \
  if ((queue).device() == ::mm01::Device::kCuda) return cuda::call
#else
#define MM01_ON_CUDA(queue, call) \
  if ((queue).device() == ::mm01::Device::kCuda) ::mm01::Fail("this build has no CUDA")
#endif
