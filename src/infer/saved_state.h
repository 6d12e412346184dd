// The file in which a session is kept: a safetensors file, so that any reader of the format can
// look inside, with a hash of all of it.
//
//   metadata   format "mm01-state", version "1", model (fingerprint, hex), config (JSON), kv (type)
//   tokens                 [T]             int32
//   logits                 [V]             float32   of the next token
//   layer.{i}.state        [H, K, V]       float32   lightning layers, at the last border of the
//   grid layer.{i}.k_rows       [m, H, K]       float32   and rows since, m = T mod 64
//   layer.{i}.v_rows       [m, H, V]       float32
//   layer.{i}.k, .v        [T, G, K]       float32 or bf16   softmax layers
//   checksum               [16]            uint8     XXH3-128 of the metadata, names and bytes
//   above
//
// The layout is that of the model, not of the machine: pages and panels do not show.
#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"
#include "base/status.h"

namespace mm01::infer {

struct SavedStateInfo {
  int version = 0;
  std::string model;  // fingerprint, 16 hex digits
  Json config;
  std::string kv;  // "float32" or "bf16"
  int64_t num_tokens = 0;
  int64_t state_bytes = 0;
  int64_t kv_bytes = 0;
};

// Reads the header and checks the hash of all data; no model is needed. Errors: a file that is no
// saved state, of another version, or damaged (Invalid).
Result<SavedStateInfo> InspectState(const std::string& path);

}  // namespace mm01::infer
