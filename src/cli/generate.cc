// mm01 generate: reads a prompt and writes what comes next.
#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "base/format.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/prompt.h"
#include "cli/reading.h"
#include "cli/sampling_flags.h"
#include "infer/saved_state.h"
#include "io/encode_pieces.h"

namespace mm01::cli {
namespace {

struct GenerateFlags {
  ModelFlags model;
  SamplingFlags sampling;
  std::optional<std::string> prompt, prompt_file, system;
  std::optional<int64_t> prompt_tokens;
  bool special = false;
  bool chat = false;
  bool json = false;
  std::optional<std::string> save_state, load_state;
  bool resume = false;
};

// From the prompt's bytes to the last line of the summary.
class GenerateRun {
 public:
  explicit GenerateRun(const GenerateFlags& flags) : flags_(flags), notes_(flags.model.quiet) {}

  Result<int> Run() {
    MM01_RETURN_IF_ERROR(MakePrompt());
    MM01_RETURN_IF_ERROR(FindStateLength());
    const auto prompt_length = static_cast<int64_t>(prompt_.size());
    const int64_t needed = flags_.resume ? prompt_length : state_length_ + prompt_length;
    if (needed == 0) return Status::Invalid("the prompt is empty, wanted at least one token");
    options_ = ToGenerateOptions(flags_.sampling);
    MM01_ASSIGN_OR_RETURN(
        model_,
        LoadModel(flags_.model,
                  {.context_tokens = std::max<int64_t>(1, needed + options_.max_tokens)}, notes_));
    MM01_RETURN_IF_ERROR(CheckRoom(needed));
    MM01_ASSIGN_OR_RETURN(infer::Session session, OpenSession());
    std::span<const int32_t> unread = prompt_;
    if (flags_.resume) {
      MM01_ASSIGN_OR_RETURN(unread, RestOfPrompt(session));
    }

    const InterruptScope interrupt;
    reading_ = ReadWithProgress(session, unread, notes_);
    if (reading_.status.code() == Code::kCancelled) return StoppedWhileReading(session, unread);
    MM01_RETURN_IF_ERROR(reading_.status);
    MM01_RETURN_IF_ERROR(Write(session));
    if (flags_.save_state) MM01_RETURN_IF_ERROR(Save(session));
    Summarize(session);
    return InterruptScope::requested() ? kExitInterrupted : kExitOk;
  }

 private:
  Status MakePrompt() {
    if (flags_.prompt && flags_.prompt_file) {
      return Status::Invalid("PROMPT and --prompt-file are both given, wanted one of them");
    }
    if (flags_.system && !flags_.chat) {
      return Status::Invalid("--system is given without --chat, wanted both");
    }
    if (flags_.resume && !flags_.load_state) {
      return Status::Invalid("--resume is given without --load-state, wanted both");
    }
    const bool from_pipe =
        !flags_.prompt && !flags_.prompt_file && !flags_.load_state && !InputIsTerminal();
    std::string text = flags_.prompt.value_or("");
    if (flags_.prompt_file || from_pipe) {
      MM01_ASSIGN_OR_RETURN(text, ReadText(flags_.prompt_file.value_or("-")));
    } else if (!flags_.prompt) {
      if (flags_.load_state) return Status::Ok();
      return Status::Invalid(
          "there is no prompt, wanted PROMPT, --prompt-file FILE or text on standard input");
    }
    // Before the model: what memory is needed follows from the number of tokens.
    MM01_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(flags_.model.model));
    MM01_RETURN_IF_ERROR(flags_.chat ? EncodeChat(tokenizer, text) : EncodePlain(tokenizer, text));
    if (flags_.prompt_tokens && *flags_.prompt_tokens < static_cast<int64_t>(prompt_.size())) {
      prompt_.resize(static_cast<size_t>(*flags_.prompt_tokens));
    }
    return Status::Ok();
  }

  Status EncodePlain(const Tokenizer& tokenizer, const std::string& text) {
    const auto special = flags_.special ? Tokenizer::Special::kParse : Tokenizer::Special::kAsText;
    MM01_ASSIGN_OR_RETURN(prompt_, tokenizer.Encode(text, special));
    return Status::Ok();
  }

  Status EncodeChat(const Tokenizer& tokenizer, const std::string& text) {
    MM01_ASSIGN_OR_RETURN(const auto own, LoadChatTemplate(flags_.model.model));
    std::string note;
    const ChatTemplate& chat_template = TemplateOrText01(own ? &*own : nullptr, &note);
    notes_.Write(note);
    Json messages = Json::array();
    if (flags_.system) messages.push_back(Message("system", *flags_.system));
    messages.push_back(Message("user", text));
    MM01_ASSIGN_OR_RETURN(const auto pieces, RenderForAnswer(chat_template, messages));
    MM01_ASSIGN_OR_RETURN(EncodedPieces encoded, EncodePieces(tokenizer, pieces));
    prompt_ = std::move(encoded.ids);
    return Status::Ok();
  }

  Status FindStateLength() {
    if (!flags_.load_state) return Status::Ok();
    MM01_ASSIGN_OR_RETURN(const auto info, infer::InspectState(*flags_.load_state));
    state_length_ = info.num_tokens;
    return Status::Ok();
  }

  // A context that was asked for holds the prompt, and cuts what is written.
  Status CheckRoom(int64_t needed) {
    const int64_t room = model_.engine->options().context_tokens - needed;
    if (room < 0) {
      return Status::TooLarge(fmt::format("--context is {}, wanted {} or more, the tokens of {}",
                                          needed + room, needed,
                                          flags_.load_state ? "state and prompt" : "the prompt"));
    }
    options_.max_tokens = std::min(options_.max_tokens, room);
    return Status::Ok();
  }

  Result<infer::Session> OpenSession() {
    if (flags_.load_state) return infer::Session::Load(*model_.engine, *flags_.load_state);
    return infer::Session::Open(*model_.engine);
  }

  Result<std::span<const int32_t>> RestOfPrompt(const infer::Session& session) const {
    const auto& read = session.tokens();
    const auto [at, unused] =
        std::mismatch(read.begin(), read.end(), prompt_.begin(), prompt_.end());
    if (at == read.end()) return std::span<const int32_t>(prompt_).subspan(read.size());
    return Status::Invalid(fmt::format(
        "{}: its {} tokens part from those of the prompt after {}, wanted a state that was saved "
        "while this prompt was read",
        *flags_.load_state, read.size(), at - read.begin()));
  }

  Result<int> StoppedWhileReading(const infer::Session& session,
                                  std::span<const int32_t> unread) const {
    const std::string done = fmt::format(
        "stopped after {} of {} tokens", FormatCount(session.length()),
        FormatCount(session.length() - reading_.num_tokens + static_cast<int64_t>(unread.size())));
    if (!flags_.save_state) {
      return Status::Cancelled(done + "; with --save-state FILE they would have been kept");
    }
    MM01_RETURN_IF_ERROR(session.Save(*flags_.save_state));
    return Status::Cancelled(
        fmt::format("{}, which are kept in {}; to go on, give the same prompt with --load-state {} "
                    "--resume",
                    done, *flags_.save_state, *flags_.save_state));
  }

  Status Write(infer::Session& session) {
    const bool streams = !flags_.json;
    MM01_ASSIGN_OR_RETURN(written_, infer::Generate(session, options_, [&](std::string_view text) {
                            if (streams) Print(text);
                            return !InterruptScope::requested();
                          }));
    if (streams) Print("\n");
    return Status::Ok();
  }

  Status Save(const infer::Session& session) const {
    MM01_RETURN_IF_ERROR(session.Save(*flags_.save_state));
    notes_.WriteFaint(fmt::format("saved {} tokens to {}; --load-state {} goes on from there\n",
                                  FormatCount(session.length()), *flags_.save_state,
                                  *flags_.save_state));
    return Status::Ok();
  }

  double WrittenPerSecond() const {
    const auto n = static_cast<double>(written_.tokens.size());
    return written_.seconds > 0.0 ? n / written_.seconds : 0.0;
  }

  void Summarize(const infer::Session& session) const {
    if (flags_.json) Print(JsonText(ToJson(session), 2) + "\n");
    const auto line = [](const char* verb, int64_t n, double seconds, double speed) {
      return fmt::format("{} {} tokens in {}, {:.1f} tokens/s\n", verb, FormatCount(n),
                         FormatSeconds(seconds), speed);
    };
    notes_.WriteFaint(
        line("read ", reading_.num_tokens, reading_.seconds, reading_.tokens_per_second()) +
        line("wrote", static_cast<int64_t>(written_.tokens.size()), written_.seconds,
             WrittenPerSecond()) +
        fmt::format("end: {}; seed {}; context {} tokens; loaded in {}\nmemory: {}\n",
                    infer::ToString(written_.finish), options_.sampling.seed,
                    FormatCount(session.length()), FormatSeconds(model_.seconds),
                    MemoryText(*model_.engine)));
  }

  Json ToJson(const infer::Session& session) const {
    return {{"text", written_.text},
            {"tokens", written_.tokens},
            {"finish", infer::ToString(written_.finish)},
            {"seed", options_.sampling.seed},
            {"prompt_tokens", reading_.num_tokens},
            {"context_tokens", session.length()},
            {"timings",
             {{"load_seconds", model_.seconds},
              {"prefill_seconds", reading_.seconds},
              {"prefill_tokens_per_second", reading_.tokens_per_second()},
              {"decode_seconds", written_.seconds},
              {"decode_tokens_per_second", WrittenPerSecond()}}},
            {"memory", MemoryJson(*model_.engine)}};
  }

  const GenerateFlags& flags_;
  Notes notes_;
  std::vector<int32_t> prompt_;
  int64_t state_length_ = 0;
  infer::GenerateOptions options_;
  LoadedModel model_;
  ReadingReport reading_;
  infer::GenerateResult written_;
};

void AddPromptFlags(Command& command, GenerateFlags* flags) {
  command.Section("Prompt");
  command.Text("--prompt-file", "FILE", &flags->prompt_file,
               "read the prompt from FILE, '-' for standard input");
  command.Whole("--prompt-tokens", "N", &flags->prompt_tokens, kAtLeastOne,
                "read only the first N tokens of the prompt");
  command.Switch("--special", &flags->special,
                 "text that spells a special token becomes that token; without it, it stays text");
  command.Switch("--chat", &flags->chat,
                 "the prompt is a user's message, put into the model's chat template");
  command.Text("--system", "TEXT", &flags->system, "with --chat, what the model is told to be");
}

void AddStateFlags(Command& command, GenerateFlags* flags) {
  command.Section("Output and state");
  command.Switch("--json", &flags->json,
                 "one JSON object at the end: text, tokens, finish, timings, memory");
  command.Text("--save-state", "FILE", &flags->save_state,
               "keep what was read and written; also when Ctrl-C stops the reading");
  command.Text("--load-state", "FILE", &flags->load_state,
               "go on from there; a prompt, if there is one, is read after it");
  command.Switch("--resume", &flags->resume,
                 "the state of --load-state is of a reading of this prompt that was stopped: read "
                 "the rest");
}

}  // namespace

void AddGenerate(CommandLine& line) {
  auto flags = std::make_shared<GenerateFlags>();
  Command& command = line.Add(
      {"generate",
       "Reads a prompt and writes what comes next.",
       "The prompt is PROMPT, a file, or standard input. Text streams to standard output as it "
       "is written; plan, progress and summary go to standard error. Ctrl-C while it reads stops "
       "it (see --save-state), while it writes ends the text.",
       {"mm01 generate models/nano \"The sea was calm that night, and\"",
        "mm01 generate models/nano --prompt-file book.txt --save-state book.state",
        "mm01 generate models/nano --load-state book.state \"In short, the book\""}});
  AddModelArgument(command, &flags->model);
  command.Optional("PROMPT", &flags->prompt, "the text to go on from");
  AddPromptFlags(command, flags.get());
  AddSamplingFlags(command, &flags->sampling);
  AddStateFlags(command, flags.get());
  AddModelFlags(command, &flags->model, "prompt and --max-tokens");
  command.Action([flags] {
    const Result<int> code = GenerateRun(*flags).Run();
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
