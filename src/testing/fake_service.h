// A service that writes what it is told to, at once: the double of infer::Service for what is above
// it. Its engine's thread is the caller of Step, or a thread of its own.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "infer/service.h"
#include "io/detokenizer.h"

namespace mm01::testing {

class FakeService final : public infer::Service {
 public:
  // The tokens that are written after a prompt, before max_tokens cuts them. A request with a
  // filter gets tokens drawn from random logits instead.
  using Script = std::function<std::vector<int32_t>(const infer::Request&)>;

  FakeService(const Tokenizer& tokenizer, int32_t end_token, Script script)
      : tokenizer_(tokenizer), end_token_(end_token), script_(std::move(script)) {}

  const infer::Engine& engine() const override { Fail("the fake has no engine"); }

  Result<Id> Submit(infer::Request request, std::shared_ptr<infer::Listener> listener) override {
    std::unique_lock lock(mutex_);
    ++stats_.submitted;
    requests_.push_back({request.prompt, request.borders, request.generate.max_tokens});
    if (refuse_) {
      ++stats_.refused;
      return Status::TooLarge("256 requests wait already, wanted at most 256");
    }
    const Id id = ++last_id_;
    if (hold_) {
      waiting_.emplace(
          id, std::pair(std::make_shared<infer::Request>(std::move(request)), std::move(listener)));
      return id;
    }
    lock.unlock();
    Run(request, *listener);
    return id;
  }
  void Cancel(Id id) override {
    std::shared_ptr<infer::Listener> listener;
    {
      const std::lock_guard lock(mutex_);
      const auto it = waiting_.find(id);
      if (it == waiting_.end()) return;
      listener = std::move(it->second.second);
      waiting_.erase(it);
      ++stats_.cancelled;
    }
    listener->On(infer::Done{.finish = infer::Finish::kCancelled});
  }
  infer::ServiceStats stats() const override {
    const std::lock_guard lock(mutex_);
    infer::ServiceStats stats = stats_;
    stats.running = static_cast<int64_t>(waiting_.size());
    return stats;
  }
  void Drain(double) override { Release(); }

  struct Seen {
    std::vector<int32_t> prompt;
    std::vector<int64_t> borders;
    int64_t max_tokens;
  };
  std::vector<Seen> requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
  }
  void set_refuse(bool refuse) { refuse_ = refuse; }
  // From now on requests fail once they have written so many tokens; -1: none does.
  void FailAfter(int64_t tokens) { fail_after_ = tokens; }
  // Requests wait from now on, having reported that they read; until Release.
  void set_hold(bool hold) { hold_ = hold; }
  void Release() {
    std::map<Id, Waiting> waiting;
    {
      const std::lock_guard lock(mutex_);
      hold_ = false;
      waiting.swap(waiting_);
    }
    for (auto& [id, w] : waiting) Run(*w.first, *w.second);
  }
  // Of those that wait.
  void Report(const infer::Reading& reading) {
    const std::lock_guard lock(mutex_);
    for (auto& [id, w] : waiting_) w.second->On(reading);
  }

 private:
  using Waiting = std::pair<std::shared_ptr<infer::Request>, std::shared_ptr<infer::Listener>>;

  static double LogprobOf(int32_t token) { return -0.5 - token % 7; }

  infer::TokenInfo Info(const infer::Request& request, int32_t token) const {
    infer::TokenInfo info{.token = token, .logprob = LogprobOf(token)};
    for (int i = 0; i < request.top_logprobs; ++i) {
      info.top.push_back(
          {(token + i) % static_cast<int32_t>(tokenizer_.size()), LogprobOf(token) - i});
    }
    return info;
  }

  std::vector<int32_t> Constrained(const infer::Request& request) const {
    std::mt19937 random(static_cast<uint32_t>(request.generate.sampling.seed + request.choice));
    std::vector<int32_t> tokens;
    std::vector<float> logits(static_cast<size_t>(tokenizer_.size()));
    while (static_cast<int64_t>(tokens.size()) < request.generate.max_tokens) {
      std::uniform_real_distribution<float> uniform(-1.0F, 1.0F);
      for (float& x : logits) x = uniform(random);
      request.filter->Mask(logits);
      const auto token =
          static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      request.filter->Accept(token);
      tokens.push_back(token);
      if (token == end_token_) break;
    }
    return tokens;
  }

  void Run(const infer::Request& request, infer::Listener& listener) {
    const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
    listener.On(infer::Reading{.done = prompt_tokens, .total = prompt_tokens});
    infer::PromptRead read;
    if (request.prompt_logprobs) {
      for (size_t i = 1; i < request.prompt.size(); ++i) {
        read.logprobs.push_back(Info(request, request.prompt[i]));
      }
    }
    listener.On(std::move(read));
    infer::Done done{.usage = {.prompt_tokens = prompt_tokens}};
    StreamingDetokenizer detokenizer(tokenizer_, /*skip_special=*/true);
    for (const int32_t token : request.filter ? Constrained(request) : script_(request)) {
      if (done.usage.completion_tokens == request.generate.max_tokens) break;
      if (done.usage.completion_tokens == fail_after_) {
        {
          const std::lock_guard lock(mutex_);
          ++stats_.failed;
        }
        return listener.On(infer::Failed{.status = Status::Io("the engine broke")});
      }
      ++done.usage.completion_tokens;
      listener.On(infer::Wrote{.text = detokenizer.Push(token), .tokens = {Info(request, token)}});
      if (token == end_token_) {
        done.finish = infer::Finish::kEnd;
        break;
      }
    }
    if (std::string rest = detokenizer.Finish(); !rest.empty()) {
      listener.On(infer::Wrote{.text = std::move(rest)});
    }
    {
      const std::lock_guard lock(mutex_);
      ++stats_.done;
      stats_.prompt_tokens += done.usage.prompt_tokens;
      stats_.written_tokens += done.usage.completion_tokens;
    }
    listener.On(done);
  }

  const Tokenizer& tokenizer_;
  int32_t end_token_;
  Script script_;
  mutable std::mutex mutex_;
  infer::ServiceStats stats_;
  std::vector<Seen> requests_;
  std::map<Id, Waiting> waiting_;
  Id last_id_ = 0;
  std::atomic<bool> refuse_{false}, hold_{false};
  std::atomic<int64_t> fail_after_{-1};
};

}  // namespace mm01::testing
