#include "infer/mask_worker.h"

#include <algorithm>
#include <exception>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/priority.h"

namespace mm01::infer {

AheadFilter::AheadFilter(MaskWorker& worker, std::unique_ptr<TokenFilter> filter,
                         int64_t vocab_size)
    : worker_(worker), work_(std::make_shared<Work>()) {
  work_->filter = std::move(filter);
  work_->vocab_size = vocab_size;
  worker_.Push(work_);
}

AheadFilter::~AheadFilter() {
  work_->is_over = true;
  worker_.Push(std::move(work_));
}

void AheadFilter::Mask(std::span<float> logits) {
  Check(ready(), "the mask is not there yet");
  work_->filter->Mask(logits);
}

void AheadFilter::Accept(int32_t token) {
  Check(ready(), "the mask of the token before is not there yet");
  work_->filter->Accept(token);
  work_->is_ready = false;
  worker_.Push(work_);
}

MaskWorker::MaskWorker(std::function<void()> on_ready)
    : on_ready_(std::move(on_ready)), thread_([this] { Run(); }) {}

MaskWorker::~MaskWorker() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void MaskWorker::Push(std::shared_ptr<AheadFilter::Work> work) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
  }
  wake_.notify_all();
}

void MaskWorker::Wait(std::chrono::microseconds most) {
  std::unique_lock lock(mutex_);
  idle_.wait_for(lock, most, [&] { return queue_.empty() && !is_busy_; });
}

// Null at the end.
std::shared_ptr<AheadFilter::Work> MaskWorker::Take() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
  if (stop_) return nullptr;
  const auto soonest =
      std::ranges::min_element(queue_, {}, [](const auto& work) { return work->seconds; });
  std::shared_ptr<AheadFilter::Work> work = std::move(*soonest);
  queue_.erase(soonest);
  is_busy_ = true;
  return work;
}

void MaskWorker::Run() {
  LowerThreadPriority();
  std::vector<float> logits;
  while (std::shared_ptr<AheadFilter::Work> work = Take()) {
    if (!work->is_over) {
      const auto begin = std::chrono::steady_clock::now();
      try {
        logits.assign(static_cast<size_t>(work->vocab_size), 0.0f);
        work->filter->Mask(logits);
      } catch (const std::exception&) {
        // It will throw again where the request is, which then fails alone.
      }
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      work->seconds = took.count();
      work->is_ready = true;
      on_ready_();
    }
    work.reset();
    bool is_idle = false;
    {
      const std::lock_guard lock(mutex_);
      is_busy_ = false;
      is_idle = queue_.empty();
    }
    // Not under the lock: who is woken would take this thread's processor, and then wait for it.
    if (is_idle) idle_.notify_all();
  }
}

}  // namespace mm01::infer
