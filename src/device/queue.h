// An ordered stream of work on one device. Ops take the queue they run on as their first argument.
// Today the only device is the CPU: a thread pool, and scratch memory that ops borrow.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "device/buffer.h"

namespace mm01 {

class Queue {
 public:
  explicit Queue(int num_threads) : pool_(num_threads) {}

  ThreadPool& pool() { return pool_; }
  int num_threads() const { return pool_.num_threads(); }
  int64_t scratch_bytes() const;

 private:
  friend class Scratch;

  struct Chunk {
    Buffer memory;
    int64_t used = 0;
  };

  ThreadPool pool_;
  std::vector<Chunk> chunks_;  // a stack; one chunk once the sizes have settled
};

// Memory for the length of a scope, taken from the queue and given back in reverse order. After the
// first steps of a run no call of Get allocates.
class Scratch {
 public:
  explicit Scratch(Queue& queue);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Uninitialised room for n elements, aligned to 64 bytes.
  template <typename T>
  T* Get(int64_t n) {
    return static_cast<T*>(GetBytes(n * static_cast<int64_t>(sizeof(T))));
  }

 private:
  void* GetBytes(int64_t bytes);

  Queue& queue_;
  std::size_t num_chunks_;  // what was in use when this scope began
  int64_t used_;
};

}  // namespace mm01
