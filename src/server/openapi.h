// The OpenAPI document of the routes, served as /openapi.json.
#pragma once

#include "base/json.h"

namespace mm01::server {

Json OpenApiDocument();

}  // namespace mm01::server
