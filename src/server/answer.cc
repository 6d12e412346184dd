#include "server/answer.h"

#include <deque>
#include <mutex>
#include <utility>

#include "base/json.h"
#include "server/api_error.h"
#include "server/choice.h"
#include "server/sse.h"

namespace mm01::server {
namespace {

class Answer : public std::enable_shared_from_this<Answer> {
 public:
  Answer(infer::Service& service, const ServedModel& model, std::shared_ptr<Exchange> exchange,
         AnswerPlan plan)
      : service_(service), model_(model), exchange_(std::move(exchange)), plan_(std::move(plan)) {
    for (const infer::Request& r : plan_.requests) {
      choices_.emplace_back(*model_.tokenizer, plan_.has_tools);
      prompts_.push_back(plan_.echo ? r.prompt : std::vector<int32_t>());
    }
  }

  void Start();
  // On the engine's thread.
  void Queue(size_t choice, infer::Event event);

 private:
  using Queued = std::pair<size_t, infer::Event>;

  class ChoiceListener : public infer::Listener {
   public:
    ChoiceListener(std::shared_ptr<Answer> answer, size_t choice)
        : answer_(std::move(answer)), choice_(choice) {}
    void On(infer::Event event) override { answer_->Queue(choice_, std::move(event)); }

   private:
    std::shared_ptr<Answer> answer_;
    size_t choice_;
  };

  Status Submit();
  void CancelAll();
  void Drain();
  void On(size_t choice, const infer::Reading& reading);
  void On(size_t choice, infer::PromptRead& read);
  void On(size_t choice, infer::Wrote& wrote);
  void On(size_t choice, const infer::Done& done);
  void On(size_t choice, const infer::Failed& failed);
  void Fail(const ApiError& error);
  void FinishAll();

  void Send(const std::string& bytes);
  void KeepAlive();
  Json Chunk() const;
  Json ChunkOf(size_t choice, Json delta, Json logprobs, Json finish) const;
  Json TextOf(size_t choice, std::string text, Json logprobs, Json finish) const;
  Json TakeLogprobs(size_t choice);
  void SendDelta(size_t choice, Json delta, const char* finish);
  Json UsageJson() const;
  Json Timings() const;

  infer::Service& service_;
  const ServedModel& model_;
  std::shared_ptr<Exchange> exchange_;
  AnswerPlan plan_;

  std::mutex mutex_;
  std::deque<Queued> queue_;
  std::vector<infer::Service::Id> ids_;
  bool is_scheduled_ = false, is_over_ = false;

  // On the strand alone.
  std::vector<Choice> choices_;
  std::vector<std::vector<int32_t>> prompts_;  // that are echoed
  size_t num_done_ = 0;
  bool has_sent_ = false;  // since the last keep-alive
};

void Answer::Start() {
  exchange_->Post([self = shared_from_this()] {
    self->exchange_->OnGone([self] { self->CancelAll(); });
    self->exchange_->OnRoom([self] { self->Drain(); });
  });
  if (const Status status = Submit(); !status.ok()) {
    CancelAll();
    ApiError error = ToApiError(status);
    if (status.code() == Code::kTooLarge) error = {429, status.message(), "", "queue_full"};
    exchange_->Post(
        [self = shared_from_this(), error] { self->exchange_->Send(ErrorResponse(error)); });
    return;
  }
  if (!plan_.stream) return;
  exchange_->Post([self = shared_from_this()] {
    self->exchange_->Begin(
        {.content_type = kEventStream,
         .headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
    self->KeepAlive();
    const std::lock_guard lock(self->mutex_);
    self->is_scheduled_ = !self->queue_.empty();
    if (self->is_scheduled_) self->exchange_->Post([self] { self->Drain(); });
  });
}

// Until the stream has begun, events wait.
Status Answer::Submit() {
  is_scheduled_ = plan_.stream;
  for (size_t i = 0; i < plan_.requests.size(); ++i) {
    auto listener = std::make_shared<ChoiceListener>(shared_from_this(), i);
    MM01_ASSIGN_OR_RETURN(const infer::Service::Id id,
                          service_.Submit(std::move(plan_.requests[i]), std::move(listener)));
    std::unique_lock lock(mutex_);
    if (!is_over_) {
      ids_.push_back(id);
      continue;
    }
    lock.unlock();
    service_.Cancel(id);
    return Status::Cancelled("the client is gone");
  }
  return Status::Ok();
}

void Answer::CancelAll() {
  std::vector<infer::Service::Id> ids;
  {
    const std::lock_guard lock(mutex_);
    is_over_ = true;
    ids.swap(ids_);
    queue_.clear();
  }
  for (const infer::Service::Id id : ids) service_.Cancel(id);
}

void Answer::Queue(size_t choice, infer::Event event) {
  const std::lock_guard lock(mutex_);
  if (is_over_) return;
  if (!queue_.empty() && queue_.back().first == choice) {
    infer::Event& last = queue_.back().second;
    auto* more = std::get_if<infer::Wrote>(&event);
    auto* wrote = std::get_if<infer::Wrote>(&last);
    if (more != nullptr && wrote != nullptr) {
      wrote->text += more->text;
      std::move(more->tokens.begin(), more->tokens.end(), std::back_inserter(wrote->tokens));
      return;
    }
    if (std::holds_alternative<infer::Reading>(event) &&
        std::holds_alternative<infer::Reading>(last)) {
      last = std::move(event);
      return;
    }
  }
  queue_.emplace_back(choice, std::move(event));
  if (is_scheduled_) return;
  is_scheduled_ = true;
  exchange_->Post([self = shared_from_this()] { self->Drain(); });
}

void Answer::Drain() {
  while (true) {
    std::deque<Queued> events;
    {
      const std::lock_guard lock(mutex_);
      is_scheduled_ = !queue_.empty();
      if (queue_.empty() || is_over_) return;
      if (exchange_->full()) return;  // OnRoom comes back here
      events.swap(queue_);
    }
    for (auto& [choice, event] : events) {
      std::visit([&, i = choice](auto& e) { On(i, e); }, event);
    }
  }
}

void Answer::Send(const std::string& bytes) {
  has_sent_ = true;
  exchange_->Write(bytes);
}

void Answer::KeepAlive() {
  if (!std::exchange(has_sent_, false)) exchange_->Write(SseComment("keep-alive"));
  exchange_->After(kKeepAliveSeconds, [self = shared_from_this()] { self->KeepAlive(); });
}

Json Answer::Chunk() const {
  const char* object = !plan_.is_chat ? "text_completion"
                       : plan_.stream ? "chat.completion.chunk"
                                      : "chat.completion";
  return {{"id", plan_.id},
          {"object", object},
          {"created", plan_.created},
          {"model", model_.name},
          {"choices", Json::array()}};
}

void Answer::On(size_t choice, const infer::Reading& reading) {
  if (!plan_.stream) return;
  const Json progress = {{"index", choice},
                         {"done", reading.done},
                         {"total", reading.total},
                         {"cached", reading.cached},
                         {"tokens_per_second", reading.tokens_per_second},
                         {"seconds_left", reading.seconds_left}};
  if (!plan_.include_progress) return Send(SseComment("progress " + JsonText(progress)));
  Json chunk = Chunk();
  chunk["progress"] = progress;
  Send(SseData(JsonText(chunk)));
}

void Answer::On(size_t choice, infer::PromptRead& read) {
  Choice& c = choices_[choice];
  if (plan_.is_chat) {
    if (!plan_.stream) return;
    return SendDelta(choice, {{"role", "assistant"}, {"content", ""}}, nullptr);
  }
  if (!plan_.echo) return;
  const std::vector<int32_t>& prompt = prompts_[choice];
  if (plan_.logprobs) {
    c.text_logprobs.AddFirst(prompt.front());
    for (const infer::TokenInfo& info : read.logprobs) c.text_logprobs.Add(info);
  }
  infer::Wrote echoed;
  StreamingDetokenizer detokenizer(*model_.tokenizer);
  for (const int32_t id : prompt) echoed.text += detokenizer.Push(id);
  echoed.text += detokenizer.Finish();
  const Json delta = c.Take(echoed);
  if (plan_.stream) SendDelta(choice, delta, nullptr);
}

void Answer::On(size_t choice, infer::Wrote& wrote) {
  Choice& c = choices_[choice];
  if (plan_.logprobs) {
    for (const infer::TokenInfo& info : wrote.tokens) {
      if (plan_.is_chat) {
        c.chat_logprobs.push_back(ChatLogprob(*model_.tokenizer, info));
      } else {
        c.text_logprobs.Add(info);
      }
    }
  }
  const Json delta = c.Take(wrote);
  if (plan_.stream && (!delta.empty() || plan_.logprobs)) SendDelta(choice, delta, nullptr);
}

void Answer::On(size_t choice, const infer::Done& done) {
  if (done.finish == infer::Finish::kCancelled) {
    return Fail({503, "the server stops; ask again later", "", "server_stopping"});
  }
  Choice& c = choices_[choice];
  c.done = done;
  const Json rest = c.TakeRest();
  if (plan_.stream) SendDelta(choice, rest, c.FinishReason(done.finish));
  if (++num_done_ == choices_.size()) FinishAll();
}

void Answer::On(size_t, const infer::Failed& failed) {
  Fail(ToApiError(failed.status));
}

void Answer::Fail(const ApiError& error) {
  CancelAll();
  if (!plan_.stream) return exchange_->Send(ErrorResponse(error));
  Send(SseData(ErrorBody(error)));
  exchange_->End();
}

Json Answer::TakeLogprobs(size_t choice) {
  Choice& c = choices_[choice];
  if (!plan_.logprobs) return nullptr;
  if (!plan_.is_chat) return c.text_logprobs.Take();
  Json entries = std::exchange(c.chat_logprobs, Json::array());
  return {{"content", std::move(entries)}, {"refusal", nullptr}};
}

Json Answer::ChunkOf(size_t choice, Json delta, Json logprobs, Json finish) const {
  return {{"index", choice},
          {plan_.stream ? "delta" : "message", std::move(delta)},
          {"logprobs", std::move(logprobs)},
          {"finish_reason", std::move(finish)}};
}

Json Answer::TextOf(size_t choice, std::string text, Json logprobs, Json finish) const {
  return {{"index", choice},
          {"text", std::move(text)},
          {"logprobs", std::move(logprobs)},
          {"finish_reason", std::move(finish)}};
}

void Answer::SendDelta(size_t choice, Json delta, const char* finish) {
  const Json reason = finish == nullptr ? Json(nullptr) : Json(finish);
  Json chunk = Chunk();
  if (plan_.is_chat) {
    chunk["choices"].push_back(ChunkOf(choice, std::move(delta), TakeLogprobs(choice), reason));
  } else {
    chunk["choices"].push_back(
        TextOf(choice, delta.value("content", ""), TakeLogprobs(choice), reason));
  }
  if (plan_.include_usage) chunk["usage"] = nullptr;
  Send(SseData(JsonText(chunk)));
}

Json Answer::UsageJson() const {
  int64_t prompt = 0, cached = 0, written = 0;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const infer::Usage& usage = choices_[i].done->usage;
    written += usage.completion_tokens;
    if (i % static_cast<size_t>(plan_.choices_per_prompt) != 0) continue;
    prompt += usage.prompt_tokens;
    cached += usage.cached_tokens;
  }
  return {{"prompt_tokens", prompt},
          {"completion_tokens", written},
          {"total_tokens", prompt + written},
          {"prompt_tokens_details", {{"cached_tokens", cached}}}};
}

Json Answer::Timings() const {
  const infer::Usage& usage = choices_.front().done->usage;
  return {{"queued_seconds", usage.queued_seconds},
          {"prefill_seconds", usage.prefill_seconds},
          {"decode_seconds", usage.decode_seconds}};
}

void Answer::FinishAll() {
  {
    const std::lock_guard lock(mutex_);
    is_over_ = true;
    ids_.clear();
  }
  Json chunk = Chunk();
  if (plan_.stream) {
    chunk["usage"] = UsageJson();
    chunk["timings"] = Timings();
    if (plan_.include_usage) Send(SseData(JsonText(chunk)));
    Send("data: [DONE]\n\n");
    return exchange_->End();
  }
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& c = choices_[i];
    const char* reason = c.FinishReason(c.done->finish);
    Json logprobs = TakeLogprobs(i);
    chunk["choices"].push_back(plan_.is_chat ? ChunkOf(i, c.Message(), std::move(logprobs), reason)
                                             : TextOf(i, c.content(), std::move(logprobs), reason));
  }
  chunk["usage"] = UsageJson();
  chunk["timings"] = Timings();
  exchange_->Send({.body = JsonText(chunk)});
}

}  // namespace

void StartAnswer(infer::Service& service, const ServedModel& model,
                 std::shared_ptr<Exchange> exchange, AnswerPlan plan) {
  std::make_shared<Answer>(service, model, std::move(exchange), std::move(plan))->Start();
}

}  // namespace mm01::server
