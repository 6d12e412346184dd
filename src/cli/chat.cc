// mm01 chat: a conversation in the terminal.
#include <fmt/core.h>

#include <memory>
#include <optional>

#include "base/format.h"
#include "cli/commands.h"
#include "cli/conversation.h"
#include "cli/line_editor.h"
#include "cli/model_flags.h"
#include "cli/prompt.h"
#include "cli/sampling_flags.h"

namespace mm01::cli {
namespace {

constexpr int64_t kChatContext = 32768;

constexpr const char* kHelp =
    "A line that ends in \\ goes on in the next one; \"\"\" on a line of its own begins and ends "
    "a\n"
    "text of several lines. Ctrl-C stops reading or answering, Ctrl-D leaves.\n"
    "  /help          this text\n"
    "  /clear         forget the conversation, keep the system text\n"
    "  /system TEXT   say what the model is to be; without TEXT, nothing\n"
    "  /save FILE     keep the conversation in FILE and FILE.json\n"
    "  /load FILE     go on with a conversation that was kept\n"
    "  /retry         answer again, or go on reading what Ctrl-C stopped\n"
    "  /stats         tokens, speed and memory\n"
    "  /exit          leave\n";

struct ChatFlags {
  ModelFlags model;
  SamplingFlags sampling;
  std::optional<std::string> system;
};

class Chat {
 public:
  Chat(const ChatFlags& flags, const Notes& notes, infer::Engine& engine,
       const ChatTemplate& chat_template)
      : notes_(notes),
        options_(ToGenerateOptions(flags.sampling)),
        engine_(engine),
        conversation_(engine, chat_template) {
    if (flags.system) conversation_.SetSystem(*flags.system);
  }

  int Run() {
    notes_.WriteFaint("/help lists commands, Ctrl-D leaves\n");
    while (true) {
      const LineEditor::Input input = ReadMessage();
      if (input.end == LineEditor::End::kEof) return kExitOk;
      if (input.end == LineEditor::End::kInterrupt) {
        notes_.WriteFaint("/exit or Ctrl-D leaves\n");
      } else if (input.line.starts_with('/')) {
        if (!Obey(input.line)) return kExitOk;
      } else if (input.line.find_first_not_of(" \t\r\n") != std::string::npos) {
        conversation_.AddUser(input.line);
        Answer();
      }
    }
  }

 private:
  // One message: a line, or several.
  LineEditor::Input ReadMessage() {
    LineEditor::Input input = editor_.Read("> ");
    if (input.end != LineEditor::End::kLine) return input;
    if (input.line == "\"\"\"") return ReadBlock();
    while (input.line.ends_with('\\')) {
      input.line.back() = '\n';
      const LineEditor::Input more = editor_.Read(". ");
      if (more.end == LineEditor::End::kInterrupt) return more;
      if (more.end == LineEditor::End::kEof) break;
      input.line += more.line;
    }
    return input;
  }

  LineEditor::Input ReadBlock() {
    LineEditor::Input block;
    while (true) {
      const LineEditor::Input line = editor_.Read(". ");
      if (line.end == LineEditor::End::kInterrupt) return line;
      if (line.end == LineEditor::End::kEof || line.line == "\"\"\"") return block;
      block.line += (block.line.empty() ? "" : "\n") + line.line;
    }
  }

  // False: leave.
  bool Obey(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string command = line.substr(0, space);
    const std::string text = space == std::string::npos ? "" : line.substr(space + 1);
    if (command == "/exit" || command == "/quit") return false;
    if (command == "/help") {
      notes_.Write(kHelp);
    } else if (command == "/clear") {
      conversation_.Clear();
    } else if (command == "/system") {
      conversation_.SetSystem(text);
    } else if (command == "/stats") {
      Stats();
    } else if (command == "/retry") {
      Retry();
    } else if (command == "/save" || command == "/load") {
      SaveOrLoad(command == "/save", text);
    } else {
      notes_.Write(fmt::format("{} is no command; /help lists them\n", command));
    }
    return true;
  }

  void SaveOrLoad(bool save, const std::string& path) {
    if (path.empty()) {
      notes_.Write(fmt::format("{} needs the name of a file\n", save ? "/save" : "/load"));
      return;
    }
    const Status status = save ? conversation_.Save(path) : conversation_.Load(path);
    if (!status.ok()) {
      ReportError(status);
      return;
    }
    notes_.WriteFaint(fmt::format("{} {} messages, {} tokens\n", save ? "saved" : "loaded",
                                  conversation_.messages().size(),
                                  FormatCount(conversation_.num_tokens_read())));
  }

  void Retry() {
    if (!conversation_.TakeBackAnswer()) {
      notes_.Write("there is no message to answer yet\n");
      return;
    }
    ++options_.sampling.seed;
    Answer();
  }

  void Answer() {
    const InterruptScope interrupt;
    reading_ = conversation_.Read(notes_);
    if (reading_.status.code() == Code::kCancelled) {
      notes_.Write(reading_.status.message() +
                   "; /retry goes on, another message takes this one's place\n");
      return;
    }
    Status status = reading_.status;
    if (status.ok()) status = Write();
    if (status.ok()) return;
    ReportError(status);
    if (status.code() == Code::kTooLarge) {
      notes_.Write("/clear makes room, and so does a larger --context\n");
    }
  }

  Status Write() {
    MM01_ASSIGN_OR_RETURN(written_, conversation_.Answer(options_, [](std::string_view text) {
      Print(text);
      return !InterruptScope::requested();
    }));
    Print("\n");
    if (written_.finish == infer::Finish::kLength) {
      notes_.WriteFaint("(cut: --max-tokens or the context is reached)\n");
    }
    notes_.WriteFaint(Speed());
    return Status::Ok();
  }

  std::string Speed() const {
    const auto written = static_cast<double>(written_.tokens.size());
    return fmt::format("read {} tokens at {:.0f}/s, wrote {} at {:.1f}/s; {} of {} tokens used\n",
                       FormatCount(reading_.num_tokens), reading_.tokens_per_second(),
                       written_.tokens.size(),
                       written_.seconds > 0.0 ? written / written_.seconds : 0.0,
                       FormatCount(conversation_.num_tokens_read()),
                       FormatCount(engine_.options().context_tokens));
  }

  void Stats() { notes_.Write(Speed() + "memory: " + MemoryText(engine_) + "\n"); }

  const Notes& notes_;
  infer::GenerateOptions options_;
  infer::Engine& engine_;
  Conversation conversation_;
  LineEditor editor_;
  ReadingReport reading_;
  infer::GenerateResult written_;
};

Result<int> RunChat(const ChatFlags& flags) {
  const Notes notes(flags.model.quiet);
  MM01_ASSIGN_OR_RETURN(const LoadedModel model,
                        LoadModel(flags.model, {.context_tokens = kChatContext}, notes));
  if (model.engine->tokenizer() == nullptr) {
    return Status::NotFound(flags.model.model + "/tokenizer.json: not there, wanted by chat");
  }
  std::string note;
  const ChatTemplate& chat_template = TemplateOrText01(model.engine->chat_template(), &note);
  notes.Write(note);
  return Chat(flags, notes, *model.engine, chat_template).Run();
}

}  // namespace

void AddChat(CommandLine& line) {
  auto flags = std::make_shared<ChatFlags>();
  Command& command = line.Add(
      {"chat",
       "Talks with a model in the terminal.",
       "Ctrl-C stops the answer and not the program. A line that ends in \\ goes on in the next "
       "one, and \"\"\" on a line of its own begins and ends a longer text; /help lists commands "
       "to "
       "save, load, retry and more. The model reads only what is new. Where the model brought no "
       "chat template, that of MiniMax-Text-01 serves and a note says so.",
       {"mm01 chat models/nano", "mm01 chat models/nano --system \"You answer in one sentence.\"",
        "echo \"Who was Ernest Everhard?\" | mm01 chat models/nano --quiet"}});
  AddModelArgument(command, &flags->model);
  command.Text("--system", "TEXT", &flags->system, "what the model is told to be");
  AddSamplingFlags(command, &flags->sampling);
  AddModelFlags(command, &flags->model, std::to_string(kChatContext));
  command.Action([flags] {
    const Result<int> code = RunChat(*flags);
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
