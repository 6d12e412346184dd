// The OpenAPI document of the routes, served as /openapi.json.
#pragma once

#include <cstdint>

#include "base/json_fwd.h"

namespace mm01::server {

Json OpenApiDocument(int64_t context_tokens);

}  // namespace mm01::server
