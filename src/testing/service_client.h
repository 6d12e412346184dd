// A caller of infer::Service that waits for what it hears. For tests only.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "infer/service.h"

namespace mm01 {

// What one request led to.
struct Heard {
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<infer::TokenInfo> infos, prompt;
  std::vector<infer::Reading> readings;
  int prompt_reads = 0, ends = 0;
  bool in_order = true;  // Reading, PromptRead, Wrote, end
  std::optional<infer::Done> done;
  std::optional<Status> failed;
};

class Client : public infer::Listener {
 public:
  // Called on the engine's thread after each event is noted.
  std::function<void(const infer::Event&)> on_event;

  // The engine's thread stops at this client's first event until Release.
  void Hold() {
    on_event = [this](const infer::Event&) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return released_; });
    };
  }
  void WaitForStart() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return heard_.ends > 0 || !heard_.readings.empty(); });
  }
  void Release() {
    {
      const std::lock_guard lock(mutex_);
      released_ = true;
    }
    changed_.notify_all();
  }

  void On(infer::Event event) override {
    {
      const std::lock_guard lock(mutex_);
      std::visit([&](const auto& e) { Note(e); }, event);
    }
    changed_.notify_all();
    if (on_event) on_event(event);
  }
  Heard Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return heard_.ends > 0; });
    return heard_;
  }
  // Until `n` tokens have been written, or the end.
  void WaitForTokens(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return heard_.ends > 0 || heard_.tokens.size() >= n; });
  }

 private:
  void Note(const infer::Reading& e) {
    heard_.in_order &= heard_.prompt_reads == 0 && heard_.ends == 0;
    heard_.readings.push_back(e);
  }
  void Note(const infer::PromptRead& e) {
    heard_.in_order &= heard_.tokens.empty() && heard_.ends == 0;
    ++heard_.prompt_reads;
    heard_.prompt = e.logprobs;
  }
  void Note(const infer::Wrote& e) {
    heard_.in_order &= heard_.prompt_reads == 1 && heard_.ends == 0;
    heard_.text += e.text;
    for (const infer::TokenInfo& info : e.tokens) {
      heard_.tokens.push_back(info.token);
      heard_.infos.push_back(info);
    }
  }
  void Note(const infer::Done& e) {
    heard_.done = e;
    ++heard_.ends;
  }
  void Note(const infer::Failed& e) {
    heard_.failed = e.status;
    ++heard_.ends;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  Heard heard_;
  bool released_ = false;
};

}  // namespace mm01
