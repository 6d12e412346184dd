#include "infer/service.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "infer/scheduler.h"
#include "infer/watchdog.h"

namespace mm01::infer {
namespace {

Status CheckToken(const char* what, int32_t token, int64_t vocabulary) {
  if (0 <= token && token < vocabulary) return Status::Ok();
  return Status::Invalid(fmt::format("{} is {}, wanted 0 to {}", what, token, vocabulary - 1));
}

Status CheckRequest(const Request& r, const Engine& engine, const TextState& state) {
  MM01_RETURN_IF_ERROR(r.generate.sampling.Validate());
  if (r.prompt.empty()) return Status::Invalid("the prompt has no tokens, wanted 1 or more");
  if (r.generate.max_tokens < 0) {
    return Status::Invalid(
        fmt::format("max_tokens is {}, wanted 0 or more", r.generate.max_tokens));
  }
  const int64_t vocabulary = engine.config().vocab_size;
  for (const int32_t token : r.prompt) {
    MM01_RETURN_IF_ERROR(CheckToken("a token of the prompt", token, vocabulary));
  }
  for (const auto& [token, bias] : r.logit_bias) {
    MM01_RETURN_IF_ERROR(CheckToken("a token of logit_bias", token, vocabulary));
    if (!std::isfinite(bias)) return Status::Invalid("a value of logit_bias is not finite");
  }
  if (!std::isfinite(r.presence_penalty) || !std::isfinite(r.frequency_penalty)) {
    return Status::Invalid("a penalty is not finite");
  }
  const auto length = static_cast<int64_t>(r.prompt.size());
  int64_t before = 0;
  for (const int64_t border : r.borders) {
    if (border < before || border > length) {
      return Status::Invalid(
          fmt::format("a border is {}, wanted {} to {}: they ascend within the prompt", border,
                      before, length));
    }
    before = border;
  }
  const int64_t room = state.max_tokens();
  if (state.page_bytes() > 0 && r.generate.max_tokens > room - length) {
    return Status::TooLarge(
        fmt::format("{} tokens of prompt and {} to be written do not fit: keys and values have "
                    "room for {}",
                    length, r.generate.max_tokens, room));
  }
  return Status::Ok();
}

class ThreadedService final : public Service {
 public:
  ThreadedService(std::unique_ptr<Engine> engine, ServiceOptions options)
      : engine_(std::move(engine)),
        options_(std::move(options)),
        // Another device or type keeps other bytes of the same text.
        model_(fmt::format(
            "{:016x} {} {} {}", engine_->fingerprint(), ToString(engine_->state().device()),
            ToString(engine_->state().kv_type()), ToString(engine_->state().row_type()))),
        snapshots_(engine_->state(), options_.snapshot_bytes) {}

  // Once, before anything else. Errors: a snapshot folder that cannot be used.
  Status Start() {
    if (!options_.snapshot_dir.empty()) {
      MM01_ASSIGN_OR_RETURN(files_,
                            SnapshotFiles::Open({.folder = options_.snapshot_dir,
                                                 .budget_bytes = options_.snapshot_disk_bytes,
                                                 .most_pending_bytes = options_.snapshot_bytes / 4,
                                                 .model = model_,
                                                 .border_bytes = engine_->state().border_bytes(),
                                                 .page_bytes = engine_->state().page_bytes(),
                                                 .on_read = [this] { Poke(); }}));
    }
    scheduler_ = std::make_unique<Scheduler>(
        *engine_, snapshots_, Helpers{.files = files_.get(), .masks = &masks_}, options_);
    stats_ = scheduler_->stats();
    if (options_.stuck_seconds > 0) {
      watchdog_ = std::make_unique<Watchdog>(options_.stuck_seconds, options_.on_stuck);
    }
    thread_ = std::thread([this] { Work(); });
    return Status::Ok();
  }

  ~ThreadedService() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = draining_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  const Engine& engine() const override { return *engine_; }

  Result<Id> Submit(Request request, std::shared_ptr<Listener> listener) override {
    Status status = CheckRequest(request, *engine_, engine_->state());
    {
      const std::lock_guard lock(mutex_);
      if (status.ok()) status = Refusal();
      if (!status.ok()) {
        ++refused_;
        return status;
      }
      ++arriving_;
    }
    // Outside of the lock: the keys of a long prompt take a while.
    auto sequence = std::make_unique<Sequence>(next_id_++, std::move(request), std::move(listener),
                                               *engine_, model_);
    const Id id = sequence->id;
    {
      const std::lock_guard lock(mutex_);
      --arriving_;
      arrived_.push_back(std::move(sequence));
    }
    wake_.notify_all();
    return id;
  }

  void Cancel(Id id) override {
    {
      const std::lock_guard lock(mutex_);
      cancelled_.push_back(id);
    }
    wake_.notify_all();
  }

  ServiceStats stats() const override {
    const std::lock_guard lock(mutex_);
    ServiceStats stats = stats_;
    stats.refused = refused_;
    stats.queued += arriving_ + std::ssize(arrived_);
    stats.submitted += arriving_ + std::ssize(arrived_);
    return stats;
  }

  void Drain(double seconds) override {
    std::unique_lock lock(mutex_);
    draining_ = true;
    const auto none_left = [&] { return arriving_ == 0 && arrived_.empty() && idle_; };
    if (!finished_.wait_for(lock, std::chrono::duration<double>(seconds), none_left)) {
      cancel_all_ = true;
      wake_.notify_all();
      finished_.wait(lock, none_left);
    }
    lock.unlock();
    if (files_) files_->Flush();
  }

 private:
  // Why nothing more is taken now; mutex_ is held.
  Status Refusal() const {
    if (draining_) return Status::Cancelled("the service is shutting down");
    const int64_t queued = arriving_ + std::ssize(arrived_) + stats_.queued;
    if (queued < options_.max_queue) return Status::Ok();
    return Status::TooLarge(fmt::format("the queue is full: {} requests wait, at most {} may",
                                        queued, options_.max_queue));
  }

  // A snapshot has been read from its file, or a mask is ready.
  void Poke() {
    {
      const std::lock_guard lock(mutex_);
      poked_ = true;
    }
    wake_.notify_all();
  }

  void Work() {
    for (bool stop = false; !stop;) {
      stop = TakeOrders();
      const bool worked = !stop && Step();
      const std::lock_guard lock(mutex_);
      stats_ = scheduler_->stats();
      idle_ = scheduler_->idle();
      waits_ = !worked;
      if (idle_) finished_.notify_all();
    }
  }

  bool Step() {
    if (!watchdog_) return TryStep();
    watchdog_->Begin();
    const bool worked = TryStep();
    watchdog_->End();
    return worked;
  }

  bool TryStep() {
    try {
      return scheduler_->Step();
    } catch (const std::exception& error) {  // no memory, say, for what belongs to no request
      scheduler_->FailAll(Status(Code::kIo, error.what()));
      return true;
    }
  }

  // What callers have left, and that is new; waits for it where there is nothing else to do. True
  // at the end.
  bool TakeOrders() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] {
      return stop_ || cancel_all_ || poked_ || !waits_ || !arrived_.empty() || !cancelled_.empty();
    });
    const bool stop = stop_, cancel_all = cancel_all_ || stop_;
    cancel_all_ = poked_ = false;
    std::vector<std::unique_ptr<Sequence>> arrived = std::move(arrived_);
    std::vector<Id> cancelled = std::move(cancelled_);
    arrived_.clear();
    cancelled_.clear();
    stats_.queued += std::ssize(arrived);
    stats_.submitted += std::ssize(arrived);
    idle_ = idle_ && arrived.empty();
    lock.unlock();
    for (auto& sequence : arrived) scheduler_->Add(std::move(sequence));
    for (const Id id : cancelled) scheduler_->Cancel(id);
    if (cancel_all) scheduler_->CancelAll();
    return stop;
  }

  const std::unique_ptr<Engine> engine_;
  const ServiceOptions options_;
  const std::string model_;  // what snapshots of it go by
  std::atomic<Id> next_id_{1};

  mutable std::mutex mutex_;
  std::condition_variable wake_;      // the engine's thread
  std::condition_variable finished_;  // Drain
  // Guarded by mutex_.
  std::vector<std::unique_ptr<Sequence>> arrived_;
  int64_t arriving_ = 0;  // in Submit, yet to be in arrived_
  std::vector<Id> cancelled_;
  bool stop_ = false, draining_ = false, cancel_all_ = false, poked_ = false;
  bool waits_ = true;  // the engine's thread, for something to do
  bool idle_ = true;
  int64_t refused_ = 0;

  // Of the engine's thread.
  Snapshots snapshots_;
  std::unique_ptr<SnapshotFiles> files_;  // null where there is no folder
  MaskWorker masks_{[this] { Poke(); }};
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<Watchdog> watchdog_;  // null where nobody watches

  ServiceStats stats_;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<Service>> Service::Start(std::unique_ptr<Engine> engine,
                                                ServiceOptions options) {
  auto service = std::make_unique<ThreadedService>(std::move(engine), std::move(options));
  MM01_RETURN_IF_ERROR(service->Start());
  return std::unique_ptr<Service>(std::move(service));
}

}  // namespace mm01::infer
