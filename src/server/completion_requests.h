// The bodies of /v1/completions and /v1/chat/completions, as work for the service.
#pragma once

#include <optional>

#include "base/json_fwd.h"
#include "server/answer.h"
#include "server/api.h"
#include "server/api_error.h"

namespace mm01::server {

inline constexpr size_t kMaxPrompts = 64;  // of one completion

std::optional<ApiError> ReadCompletion(const Serving& serving, const Json& body, AnswerPlan* plan);
std::optional<ApiError> ReadChat(const Serving& serving, const Json& body, AnswerPlan* plan);

// A text, or a list of token ids, as tokens.
std::optional<ApiError> ReadPrompt(const ServedModel& model, const Json& prompt,
                                   std::vector<int32_t>* tokens);

}  // namespace mm01::server
