// Works out the masks of constrained requests on a thread of its own, so that a grammar with slow
// masks holds up nobody but those who asked for one: a request goes without a step until its mask
// is there, and the others write on. Of several that wait, the one whose last mask was made soonest
// goes first.
//
// Threads   A filter is called by one thread at a time: the worker's, where its mask is not ready,
//           else the engine's. Filters end on the worker's thread, too: large ones take a while.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>

#include "infer/service.h"

namespace mm01::infer {

class MaskWorker;

// A filter whose masks are asked for ahead, after each token: the filter keeps what it found, so
// that the mask that is meant costs the engine's thread little.
class AheadFilter final : public TokenFilter {
 public:
  // The worker outlives it.
  AheadFilter(MaskWorker& worker, std::unique_ptr<TokenFilter> filter, int64_t vocab_size);
  ~AheadFilter() override;
  AheadFilter(const AheadFilter&) = delete;
  AheadFilter& operator=(const AheadFilter&) = delete;

  bool ready() const { return work_->is_ready; }
  // Where it is ready.
  void Mask(std::span<float> logits) override;
  void Accept(int32_t token) override;

 private:
  friend class MaskWorker;
  struct Work {
    std::unique_ptr<TokenFilter> filter;
    int64_t vocab_size;
    std::atomic<bool> is_ready{false}, is_over{false};
    double seconds = 0;  // of its mask before; the worker's
  };

  MaskWorker& worker_;
  std::shared_ptr<Work> work_;
};

class MaskWorker {
 public:
  // `on_ready` is called on the worker's thread after each mask.
  explicit MaskWorker(std::function<void()> on_ready);
  ~MaskWorker();
  MaskWorker(const MaskWorker&) = delete;
  MaskWorker& operator=(const MaskWorker&) = delete;

  // Returns when there is nothing to do, or after `most`.
  void Wait(std::chrono::microseconds most);

 private:
  friend class AheadFilter;
  void Push(std::shared_ptr<AheadFilter::Work> work);
  std::shared_ptr<AheadFilter::Work> Take();
  void Run();

  const std::function<void()> on_ready_;
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  // Guarded by mutex_.
  std::deque<std::shared_ptr<AheadFilter::Work>> queue_;
  bool is_busy_ = false, stop_ = false;
  std::thread thread_;
};

}  // namespace mm01::infer
