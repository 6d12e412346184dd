// A conversation in OpenAI's form as the tokens that the model reads.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/json_fwd.h"
#include "server/api_error.h"
#include "server/served_model.h"

namespace mm01::server {

struct ChatPrompt {
  std::vector<int32_t> tokens;
  std::vector<int64_t> borders;  // ends of turns, tool results and documents: Request::borders
};

// `messages` and `tools` are fields of the request, `tools` may be null. Roles are system,
// developer (read as system), user, assistant, tool and function. A content is text or a list of
// text parts; each part but the last ends at a border, so that documents can be exchanged. What
// messages spell never becomes a special token. Calls that an assistant message holds are written
// as the model itself writes them (tool_calls.h), with the arguments as they were given.
//
// Errors: the field at fault; a model without a chat template, or one that has no place for tools.
std::optional<ApiError> BuildChatPrompt(const ServedModel& model, const Json& messages,
                                        const Json& tools, ChatPrompt* out);

}  // namespace mm01::server
