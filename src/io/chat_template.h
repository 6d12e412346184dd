// The text that a conversation becomes before it is tokenized.
//
// Templates are Jinja, a bounded subset of it that renders what it accepts to the byte as
// Jinja2 3.1 does the way transformers sets it up (trim_blocks, lstrip_blocks, break and continue,
// `generation` blocks, raise_exception, tojson = json.dumps):
//   {{ }}, {% if for set macro with filter raw generation break continue %}, {# #}, '-' and '+'
//   literals, + - * / // % ** ~, comparisons, in, and or not, if else, subscripts, slices, calls
//   filters  abs capitalize count d default dictsort first float indent int items join last length
//            list lower map reject rejectattr replace reverse safe select selectattr sort string
//            title tojson trim upper
//   tests    defined undefined none string mapping sequence iterable number integer float boolean
//            true false callable eq ne lt le gt ge (and their other names) in odd even divisibleby
//   globals  range dict namespace raise_exception
//   methods  of strings: strip lstrip rstrip split rsplit splitlines startswith endswith upper
//   lower
//            title capitalize replace join find count removeprefix removesuffix;
//            of dicts: get items keys values
// Anything else is an error that names it and its line. strftime_now counts as undefined: what a
// model reads is a function of the conversation.
//
// A hostile template or conversation costs at most the limits of io/jinja/budget.h (256 KiB of
// source, a million steps, 64 levels, 8 MiB of output) and ends in an error.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"

namespace mm01 {

namespace jinja {
struct Program;
}

// Text that came from the request (contents, names, tools, `extra`) is untrusted, whatever the
// template did with it: special tokens may be recognized in trusted pieces only. Pieces are cut
// where trust changes and not where tokens may end: ordinary text runs on over the border.
struct RenderedPiece {
  std::string text;
  bool trusted;
};

class ChatTemplate {
 public:
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // `where` names the source in errors.
  static Result<ChatTemplate> Parse(std::string source, const std::string& where);

  // MiniMax-Text-01's own. A content is a string, or a list whose first entry's text counts.
  static const ChatTemplate& Text01();

  // A variable of the template that is trusted: bos_token and the like.
  void SetSpecialToken(std::string name, std::string text);

  // `messages` is an array of objects, `tools` null or an array; `extra` points to an object with
  // further variables, or to null. Neighbouring pieces differ in trust and none is empty. Safe to
  // call from several threads. Errors: Invalid, also where the template itself raises an exception;
  // Unsupported; TooLarge over the limits.
  Result<std::vector<RenderedPiece>> Render(const Json& messages, const Json& tools,
                                            bool add_generation_prompt,
                                            const Json* extra = nullptr) const;

 private:
  explicit ChatTemplate(std::unique_ptr<jinja::Program> program);

  std::unique_ptr<jinja::Program> program_;
};

// The template of a checkpoint: chat_template.jinja in its folder, else "chat_template" of
// tokenizer_config.json (a string, or a list of {name, template} with one named "default"); nothing
// if it has neither. The special tokens of tokenizer_config.json are set.
Result<std::optional<ChatTemplate>> LoadChatTemplate(const std::string& model_dir);

}  // namespace mm01
