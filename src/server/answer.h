// The answer to one completion: submits its choices to the service, and turns what the service
// reports into JSON, whole or as server-sent events.
//
// Events    The engine's thread only queues them; they are written on the connection's strand.
// While
//           a client reads slowly they wait, joined, so that several tokens share one event.
// Progress  While a prompt is read: the comment ": progress {...}", which clients of OpenAI skip;
//           with include_progress, a chunk without choices that has "progress". A comment goes out
//           every few seconds of silence, by the clock.
// Leaving   A client that leaves cancels all of its choices.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "infer/service.h"
#include "server/generation_fields.h"
#include "server/http.h"
#include "server/served_model.h"

namespace mm01::server {

inline constexpr double kKeepAliveSeconds = 10;

struct AnswerPlan {
  bool is_chat = true;
  std::string id;  // "chatcmpl-..."
  int64_t created = 0;
  bool stream = false, include_usage = false, include_progress = false;
  bool echo = false;      // completions: the prompt before the text
  bool logprobs = false;  // show them
  bool has_tools = false;
  std::vector<infer::Request> requests;  // one a choice: those of the first prompt, the second, ...
  int64_t choices_per_prompt = 1;
};

// `service` and `model` outlive the exchange. Answers with 429 where the queue is full.
void StartAnswer(infer::Service& service, const ServedModel& model,
                 std::shared_ptr<Exchange> exchange, AnswerPlan plan);

}  // namespace mm01::server
