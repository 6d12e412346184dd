// One conversation, document or text: the tokens a model has read, and what it remembers of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "device/buffer.h"
#include "infer/engine.h"
#include "kernels/sample/sample.h"

namespace mm01::infer {

// Called between prefill steps: tokens read of this call and in all. Returning false stops there;
// what was read stays read.
using PrefillProgress = std::function<bool(int64_t done, int64_t total)>;

class Session {
 public:
  // Takes a sequence slot of the engine, which must outlive the session.
  static Result<Session> Open(Engine& engine);
  ~Session();
  Session(Session&& other) noexcept;
  Session& operator=(Session&&) = delete;

  Engine& engine() const { return *engine_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  int64_t length() const { return static_cast<int64_t>(tokens_.size()); }

  // Reads tokens, in steps of the engine's prefill_rows. Errors: a token that is not in the
  // vocabulary (Invalid; nothing is read), no room (TooLarge; nothing is read), stopped by
  // `progress` (Cancelled).
  Status Read(std::span<const int32_t> tokens, const PrefillProgress& progress = {});

  // Of the token after the last one read: [V], -inf where no token is. Empty before the first. On a
  // GPU they stay there until they are asked for.
  std::span<const float> logits() const;
  // The token that Sample draws from them, for tokens() and the next position; something has been
  // read. On a GPU most draws need no more of them than a few.
  int32_t Draw(const SamplingParams& params) const;

  // A place to come back to: the last border of the grid of 64 that was reached.
  struct Mark {
    int64_t length = 0;
    std::vector<std::byte> border;
  };
  Mark MarkBorder() const;
  // Forgets what was read since; there are no logits until something is read again.
  void Rewind(const Mark& mark);

  // Writes everything that is needed to go on exactly as without the pause (docs/formats.md);
  // atomic.
  Status Save(const std::string& path) const;
  // A session as it was saved. Refuses a file that is damaged, of another version, or of a model
  // whose state differs.
  static Result<Session> Load(Engine& engine, const std::string& path);

 private:
  Session(Engine& engine, int32_t slot) : engine_(&engine), slot_(slot) {}
  void Step(std::span<const int32_t> tokens);
  Tensor DeviceLogits() const;

  Engine* engine_;
  int32_t slot_;
  std::vector<int32_t> tokens_;
  Buffer device_logits_;               // of a GPU
  mutable std::vector<float> logits_;  // empty while they are on the GPU alone
};

}  // namespace mm01::infer
