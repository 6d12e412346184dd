#include "infer/session.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kernels/sample/sample_rows.h"

namespace mm01::infer {

Result<Session> Session::Open(Engine& engine) {
  MM01_ASSIGN_OR_RETURN(const int32_t slot, engine.state().Open());
  return Session(engine, slot);
}

Session::~Session() {
  if (engine_) engine_->state().Close(slot_);
}

Session::Session(Session&& other) noexcept
    : engine_(std::exchange(other.engine_, nullptr)),
      slot_(other.slot_),
      tokens_(std::move(other.tokens_)),
      device_logits_(std::move(other.device_logits_)),
      logits_(std::move(other.logits_)) {}

std::span<const float> Session::logits() const {
  if (logits_.empty() && device_logits_.bytes() > 0) {
    logits_.resize(static_cast<size_t>(engine_->config().vocab_size));
    engine_->queue().CopyToHost(logits_.data(), device_logits_.data(), device_logits_.bytes());
  }
  return logits_;
}

int32_t Session::Draw(const SamplingParams& params) const {
  const auto position = static_cast<uint64_t>(length());
  if (logits_.empty() && device_logits_.bytes() > 0) {
    int32_t token = -1;
    const RowDraw draw{.params = params, .previous = tokens_, .position = position};
    SampleRows(engine_->queue(), DeviceLogits(), {&draw, 1}, {&token, 1});
    if (token >= 0) return token;
  }
  return Sample(logits(), params, tokens_, 0, position);
}

Tensor Session::DeviceLogits() const {
  return Tensor(device_logits_.As<float>(), {1, engine_->config().vocab_size});
}

Status Session::Read(std::span<const int32_t> tokens, const PrefillProgress& progress) {
  const int64_t vocabulary = engine_->config().vocab_size;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocabulary) continue;
    return Status::Invalid(
        fmt::format("token {} of the input is {}, wanted 0 to {}", i, tokens[i], vocabulary - 1));
  }
  const auto total = static_cast<int64_t>(tokens.size());
  MM01_RETURN_IF_ERROR(engine_->state().Reserve(slot_, total));
  // Steps end on the grid, so that later ones start with whole blocks.
  for (int64_t done = 0; done < total;) {
    const int64_t rows = *engine_->options().prefill_rows;
    int64_t end = std::min(total, done + rows);
    const int64_t past = (length() + end - done) % kLightningBlock;
    if (end < total && past < end - done) end -= past;
    Step(tokens.subspan(static_cast<size_t>(done), static_cast<size_t>(end - done)));
    done = end;
    if (progress && !progress(done, total) && done < total) {
      return Status::Cancelled(fmt::format("stopped after {} of {} tokens", done, total));
    }
  }
  return Status::Ok();
}

Session::Mark Session::MarkBorder() const {
  Mark mark{.length = TextState::BorderBefore(length())};
  if (mark.length == 0) return mark;
  mark.border.resize(static_cast<size_t>(engine_->state().border_bytes()));
  engine_->state().CopyBorder(engine_->queue(), slot_, mark.border.data());
  return mark;
}

void Session::Rewind(const Mark& mark) {
  Check(mark.length <= length(), "a mark is of the past");
  engine_->state().Rewind(engine_->queue(), slot_, mark.length, mark.border.data());
  tokens_.resize(static_cast<size_t>(mark.length));
  logits_.clear();
}

void Session::Step(std::span<const int32_t> tokens) {
  const TextModel model = engine_->model();
  const auto rows = static_cast<int64_t>(tokens.size()), width = engine_->config().hidden_size;
  Scratch scratch(engine_->queue());
  const Tensor hidden = scratch.GetRows(engine_->weights().activations(), rows, width);
  Forward(model, {.ids = {tokens.begin(), tokens.end()}, .sequences = {{slot_, rows}}}, hidden);
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  const Tensor last = hidden.Rows(rows - 1, rows);
  const int64_t vocabulary = engine_->config().vocab_size;
  if (engine_->queue().device() == Device::kCpu) {
    logits_.resize(static_cast<size_t>(vocabulary));
    return LogitsToHost(model, last, logits_);
  }
  if (device_logits_.bytes() == 0) {
    device_logits_ = Buffer(vocabulary * SizeOf(DType::kF32), engine_->queue().device());
  }
  Logits(model, last, DeviceLogits());
  logits_.clear();
}

}  // namespace mm01::infer
