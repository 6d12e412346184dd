#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "io/file.h"
#include "train/recipe.h"
#include "train/toml_reader.h"

namespace mm01::train {
namespace {

constexpr int64_t kMost = int64_t{1} << 48;
constexpr int64_t kMaxRecipeBytes = 1 << 20;
constexpr Bounds<int64_t> kFromZero{0, kMost};
constexpr Bounds<int64_t> kFromOne{1, kMost};
constexpr Bounds<double> kPositive{1e-30, 1e30};
constexpr Bounds<double> kShare{0, 1};

IntRange ToRange(std::pair<int64_t, int64_t> pair) {
  return {pair.first, pair.second};
}

// Recipes name softmax layers by a pattern of letters, or as every n-th layer.
std::vector<LayerKind> ReadLayers(TomlReader& r) {
  std::vector<LayerKind> layers;
  if (r.Has("pattern")) {
    const std::string pattern = r.Text("pattern", "");
    for (const char c : pattern) {
      layers.push_back(c == 'S' ? LayerKind::kSoftmax : LayerKind::kLightning);
    }
    if (pattern.empty() || pattern.find_first_not_of("LS") != std::string::npos) {
      r.Wrong("pattern", *r.Find("pattern"),
              "letters L for lightning and S for softmax, one a layer");
    }
    return layers;
  }
  const int64_t n = r.Int("layers", std::nullopt, {1, 4096});
  const int64_t every = r.Int("softmax_every", 8, {0, 4096});
  for (int64_t i = 0; i < n; ++i) {
    const bool softmax = every > 0 && i % every == every - 1;
    layers.push_back(softmax ? LayerKind::kSoftmax : LayerKind::kLightning);
  }
  return layers;
}

TextConfig ReadShape(TomlReader& r) {
  TextConfig c;
  c.layers = ReadLayers(r);
  c.vocab_size = r.Int("vocab", std::nullopt, {1, int64_t{1} << 21});
  c.hidden_size = r.Int("hidden", std::nullopt, {1, 1 << 20});
  c.num_heads = r.Int("heads", std::nullopt, {1, 4096});
  c.num_kv_heads = r.Int("kv_heads", c.num_heads, {1, 4096});
  c.head_dim = r.Int("head_dim", std::nullopt, {1, 4096});
  c.rotary_dim = r.Int("rotary_dim", c.head_dim / 2 / 2 * 2, {0, 4096});
  c.rope_theta = r.Real("rope_theta", 10000.0, {1, 1e15});
  c.ffn_size = r.Int("ffn", std::nullopt, {1, 1 << 20});
  c.num_experts = r.Int("experts", 0, {0, 65536});
  c.num_experts_per_token = r.Int("experts_per_token", c.num_experts > 0 ? 2 : 0, {0, 65536});
  c.norm_eps = r.Real("norm_eps", 1e-5, {1e-12, 1});
  // DeepNorm: the residual of L layers is scaled by (2 L)^(1/4).
  const auto num_layers = static_cast<double>(c.num_layers());
  const double alpha = r.Real("alpha", std::pow(2 * num_layers, 0.25), {1e-3, 1e3});
  c.softmax_residual = c.lightning_residual = c.mlp_residual = {.alpha = alpha, .beta = 1.0};
  c.max_positions = r.Int("max_positions", int64_t{1} << 22, kFromOne);
  if (r.Has("end_id")) {
    c.eos_ids = {static_cast<int32_t>(r.Int("end_id", 0, {0, int64_t{1} << 21}))};
  }
  return c;
}

Status ReadModel(TomlReader r, Recipe* recipe) {
  recipe->from = r.Text("from", "");
  if (recipe->from.empty()) {
    recipe->config = ReadShape(r);
  } else {
    MM01_ASSIGN_OR_RETURN(recipe->config, LoadTextConfig(recipe->from));
  }
  recipe->export_float32 = r.Choice("export", {"bf16", "float32"}, 0) == 1;
  TrainOptions& o = recipe->model;
  const size_t form = r.Choice("auxiliary_form", {"paper", "transformers"}, 1);
  o.auxiliary_form = form == 0 ? AuxiliaryForm::kPaper : AuxiliaryForm::kTransformers;
  o.auxiliary_coefficient = r.Real("auxiliary_coefficient", 0.01, {0, 1e3});
  o.capacity_factor = r.Real("capacity_factor", 0.0, {0, 1e3});
  o.exact = r.Bool("exact", false);
  o.keep = static_cast<Keep>(r.Choice("keep", {"products", "norms", "all"}, 0));
  r.Finish();
  return Status::Ok();
}

void ReadOptimizer(TomlReader r, OptimizerSpec* o) {
  o->beta1 = r.Real("beta1", o->beta1, {0, 0.999999});
  o->beta2 = r.Real("beta2", o->beta2, {0, 0.9999999});
  o->eps = r.Real("eps", o->eps, kPositive);
  o->weight_decay = r.Real("weight_decay", o->weight_decay, {0, 10});
  o->clip = r.Real("clip", o->clip, {0, 1e30});
  r.Finish();
}

void ReadSchedule(TomlReader r, ScheduleSpec* s) {
  s->learning_rate = r.Real("learning_rate", std::nullopt, {0, 10});
  s->warmup_steps = r.Int("warmup_steps", 0, kFromZero);
  s->decay_steps = r.Int("decay_steps", 0, kFromZero);
  s->final_share = r.Real("final_share", 0.1, kShare);
  s->decay = static_cast<Decay>(r.Choice("decay", {"linear", "cosine", "exponential"}, 0));
  if (s->decay == Decay::kExponential && s->final_share == 0) {
    r.Error("schedule.final_share is 0 with exponential decay, wanted more than 0");
  }
  r.Finish();
}

void ReadGuard(TomlReader r, GuardSpec* g) {
  g->sigmas = r.Real("sigmas", g->sigmas, {1, 1e6});
  g->window = r.Int("window", g->window, {8, 1 << 20});
  g->max_skipped = r.Int("max_skipped", g->max_skipped, {1, 1 << 20});
  r.Finish();
}

SourceSpec ReadSource(TomlReader r) {
  SourceSpec s;
  s.name = r.Text("name", std::nullopt);
  s.path = r.Text("data", std::nullopt);
  if (const toml::node* node = r.Find("part")) {
    const toml::array* pair = node->as_array();
    if (pair != nullptr && pair->size() == 2) {
      s.part_begin = r.RealOf("part", *pair->get(0), kShare);
      s.part_end = r.RealOf("part", *pair->get(1), kShare);
    }
    if (pair == nullptr || pair->size() != 2 || s.part_begin >= s.part_end) {
      r.Wrong("part", *node, "an array of two shares from 0 to 1 that rise");
    }
  }
  s.min_tokens = r.Int("min_tokens", 1, kFromOne);
  s.max_tokens = r.Int("max_tokens", kMost, kFromOne);
  if (s.min_tokens > s.max_tokens) {
    r.Error(fmt::format("source.min_tokens is {}, wanted at most max_tokens, {}", s.min_tokens,
                        s.max_tokens));
  }
  s.resets = r.Bool("resets", true);
  const bool limited =
      s.min_tokens > 1 || s.max_tokens < kMost || s.part_begin > 0 || s.part_end < 1;
  if (!s.resets && limited) {
    r.Error("source.resets is false with limits of documents, wanted no limits or resets");
  }
  r.Finish();
  return s;
}

TaskSpec ReadTask(TomlReader r) {
  TaskSpec t;
  t.name = r.Text("name", std::nullopt);
  t.kind = static_cast<TaskKind>(r.Choice("kind", {"needle", "recall", "variables"}, 0));
  t.haystack = r.Text("haystack", "");
  t.length = ToRange(r.Range("length", std::nullopt, {32, kMost}));
  t.keys = ToRange(r.Range("keys", {{1, 1}}, {1, 1 << 16}));
  t.questions = ToRange(r.Range("questions", {{1, 1}}, {1, 1 << 16}));
  t.loss = static_cast<TaskLoss>(r.Choice("loss", {"answers", "text", "all"}, 0));
  t.ask_anywhere = r.Choice("ask", {"end", "anywhere"}, 0) == 1;
  if (t.kind != TaskKind::kRecall && t.haystack.empty()) {
    r.Error(fmt::format("task.haystack of '{}' is missing, wanted the name of a source", t.name));
  }
  r.Finish();
  return t;
}

// name = share, or name = [share at the begin, share at the end]; made to add up to 1.
std::vector<Share> ReadMix(TomlReader& stage) {
  std::vector<Share> mix;
  double begin = 0, end = 0;
  for (const auto& [key, node] : stage.Table("mix")) {
    const std::string name(key.str()), field = "mix." + name;
    Share share{.name = name};
    if (const toml::array* pair = node.as_array(); pair != nullptr && pair->size() == 2) {
      share.begin = stage.RealOf(field, *pair->get(0), {0, 1e9});
      share.end = stage.RealOf(field, *pair->get(1), {0, 1e9});
    } else {
      share.begin = share.end = stage.RealOf(field, node, {0, 1e9});
    }
    begin += share.begin;
    end += share.end;
    mix.push_back(share);
  }
  if (begin <= 0 || end <= 0) {
    stage.Error("stage.mix has no share above 0, wanted a source or a task");
    return mix;
  }
  for (Share& share : mix) {
    share.begin /= begin;
    share.end /= end;
  }
  // In the order of names, whatever the file's.
  std::sort(mix.begin(), mix.end(), [](const Share& a, const Share& b) { return a.name < b.name; });
  return mix;
}

std::vector<BatchChange> ReadBatch(TomlReader& stage, int64_t length) {
  std::vector<BatchChange> batch;
  const toml::node* node = stage.Find("batch_tokens");
  if (node == nullptr) {
    stage.Error("stage.batch_tokens is missing");
    return {{.step = 0, .tokens = length}};
  }
  const toml::array* changes = node->as_array();
  if (changes == nullptr) {
    batch = {{.step = 0, .tokens = stage.IntOf("batch_tokens", *node, kFromOne)}};
  } else {
    for (const toml::node& item : *changes) {
      const toml::array* pair = item.as_array();
      if (pair == nullptr || pair->size() != 2) {
        stage.Wrong("batch_tokens", item, "pairs [step of the stage, tokens]");
        continue;
      }
      batch.push_back({.step = stage.IntOf("batch_tokens", *pair->get(0), kFromZero),
                       .tokens = stage.IntOf("batch_tokens", *pair->get(1), kFromOne)});
    }
  }
  if (batch.empty()) stage.Error(*node, "stage.batch_tokens is empty, wanted at least one pair");
  int64_t last = -1;
  for (const BatchChange& change : batch) {
    if (change.step <= last || (last < 0 && change.step != 0)) {
      stage.Error(*node, "stage.batch_tokens: wanted steps that begin at 0 and rise");
    }
    if (change.tokens % length != 0) {
      stage.Error(*node, fmt::format("stage.batch_tokens is {}, wanted a multiple of length, {}",
                                     change.tokens, length));
    }
    last = change.step;
  }
  return batch;
}

StageSpec ReadStage(TomlReader r) {
  StageSpec s;
  s.steps = r.Int("steps", std::nullopt, kFromOne);
  s.length = r.Int("length", std::nullopt, {2, int64_t{1} << 32});
  s.batch = ReadBatch(r, s.length);
  s.rope_theta = r.Real("rope_theta", 0.0, {0, 1e15});
  s.mix = ReadMix(r);
  r.Finish();
  return s;
}

void ReadValidation(TomlReader r, ValidationSpec* v) {
  v->source = r.Text("source", "");
  v->every = r.Int("every", 0, kFromZero);
  v->tokens = r.Int("tokens", 65536, kFromOne);
  v->lengths = r.Ints("lengths", {2, int64_t{1} << 32});
  r.Finish();
}

void ReadSampling(TomlReader r, SamplingSpec* s) {
  s->every = r.Int("every", 0, kFromZero);
  s->prompt = r.Text("prompt", "");
  s->tokens = r.Int("tokens", s->tokens, {0, 1 << 20});
  s->needle_lengths = r.Ints("needle_lengths", {64, int64_t{1} << 32});
  s->needle_trials = r.Int("needle_trials", s->needle_trials, {1, 1 << 20});
  r.Finish();
}

void ReadCheckpoint(TomlReader r, CheckpointSpec* c) {
  c->every = r.Int("every", 0, kFromZero);
  c->keep_last = r.Int("keep_last", c->keep_last, kFromOne);
  c->keep_every = r.Int("keep_every", 0, kFromZero);
  r.Finish();
}

// What one part of a recipe says about another.
class CrossCheck {
 public:
  CrossCheck(const Recipe& recipe, TomlReader& root) : recipe_(recipe), root_(root) {}

  void Run() {
    for (const SourceSpec& s : recipe_.sources) Add(s.name);
    const std::set<std::string> sources = names_;
    for (const TaskSpec& t : recipe_.tasks) {
      Add(t.name);
      if (!t.haystack.empty()) Known(sources, "task.haystack", t.haystack);
    }
    if (!recipe_.tasks.empty() && recipe_.words.empty()) {
      root_.Error("words is missing, wanted a JSON file with the words that tasks make keys of");
    }
    if (recipe_.stages.empty()) root_.Error("there is no [[stage]], wanted at least one");
    for (const StageSpec& s : recipe_.stages) {
      for (const Share& share : s.mix) Known(names_, "stage.mix", share.name);
      if (s.length > recipe_.model.max_tokens) {
        root_.Error(fmt::format("pass_tokens is {}, wanted at least the longest stage's length, {}",
                                recipe_.model.max_tokens, s.length));
      }
      CheckTasks(s);
    }
    const ValidationSpec& v = recipe_.validation;
    if (!v.source.empty()) Known(sources, "validation.source", v.source);
    if (v.every > 0 && v.source.empty()) root_.Error("validation.source is missing");
    CheckTokens();
    CheckSchedule();
  }

 private:
  void Add(const std::string& name) {
    if (!names_.insert(name).second) {
      root_.Error(
          fmt::format("two sources or tasks are named '{}', wanted names that differ", name));
    }
  }
  void Known(const std::set<std::string>& names, const char* field, const std::string& name) {
    if (names.contains(name)) return;
    root_.Error(
        fmt::format("{} names '{}', wanted one of {}", field, name, fmt::join(names, ", ")));
  }
  void CheckTasks(const StageSpec& stage) {
    for (const TaskSpec& t : recipe_.tasks) {
      const bool used = std::any_of(stage.mix.begin(), stage.mix.end(),
                                    [&](const Share& share) { return share.name == t.name; });
      if (used && t.length.min > stage.length) {
        root_.Error(fmt::format(
            "task '{}' has samples of {} tokens or more, wanted at most the {} of the stage",
            t.name, t.length.min, stage.length));
      }
    }
  }
  // Tokens are counted in an int64_t.
  void CheckTokens() {
    double tokens = 0;
    for (const StageSpec& s : recipe_.stages) {
      for (const BatchChange& change : s.batch) {
        tokens += static_cast<double>(s.steps) * static_cast<double>(change.tokens);
      }
    }
    if (tokens > 0x1p60) {
      root_.Error(fmt::format("the stages have {:.2g} tokens, wanted at most 1e18", tokens));
    }
  }
  void CheckSchedule() {
    const ScheduleSpec& s = recipe_.schedule;
    const int64_t total = recipe_.total_steps();
    if (s.warmup_steps + s.decay_steps > total) {
      root_.Error(fmt::format(
          "schedule: {} steps of warm-up and {} of decay, wanted at most the {} of the run",
          s.warmup_steps, s.decay_steps, total));
    }
  }

  const Recipe& recipe_;
  TomlReader& root_;
  std::set<std::string> names_;
};

Status ReadAll(const toml::table& table, const std::string& where, Recipe* recipe) {
  Status status;
  const auto section = [&](TomlReader& root, const char* name) {
    return TomlReader(root.Table(name), std::string(name) + ".", where, &status);
  };
  TomlReader root(table, "", where, &status);
  recipe->name = root.Text("name", std::nullopt);
  recipe->seed = static_cast<uint64_t>(root.Int("seed", 0, kFromZero));
  recipe->tokenizer = root.Text("tokenizer", std::nullopt);
  recipe->words = root.Text("words", "");
  recipe->peak_tflops = root.Real("peak_tflops", 0.0, {0, 1e9});
  if (!root.Has("model")) root.Error("[model] is missing");
  // After a missing [model] its fields are not asked for.
  if (status.ok()) MM01_RETURN_IF_ERROR(ReadModel(section(root, "model"), recipe));
  recipe->model.max_tokens = root.Int("pass_tokens", std::nullopt, {2, int64_t{1} << 32});
  ReadOptimizer(section(root, "optimizer"), &recipe->optimizer);
  ReadSchedule(section(root, "schedule"), &recipe->schedule);
  ReadGuard(section(root, "guard"), &recipe->guard);
  for (const toml::table* t : root.Tables("source")) {
    recipe->sources.push_back(ReadSource({*t, "source.", where, &status}));
  }
  for (const toml::table* t : root.Tables("task")) {
    recipe->tasks.push_back(ReadTask({*t, "task.", where, &status}));
  }
  for (const toml::table* t : root.Tables("stage")) {
    recipe->stages.push_back(ReadStage({*t, "stage.", where, &status}));
  }
  ReadValidation(section(root, "validation"), &recipe->validation);
  ReadSampling(section(root, "sample"), &recipe->sampling);
  ReadCheckpoint(section(root, "checkpoint"), &recipe->checkpoint);
  root.Finish();
  if (status.ok()) CrossCheck(*recipe, root).Run();
  return status;
}

}  // namespace

Result<Recipe> ParseRecipe(std::string_view toml, const std::string& where) {
  Recipe recipe{.path = where, .text = std::string(toml)};
  try {
    MM01_RETURN_IF_ERROR(ReadAll(toml::parse(toml, where), where, &recipe));
  } catch (const toml::parse_error& e) {
    return Status::Invalid(fmt::format("{}:{}: {}", where, e.source().begin.line, e.description()));
  }
  if (const Status shape = recipe.config.Validate(); !shape.ok()) {
    return Status::Invalid(fmt::format("{}: [model]: {}", where, shape.message()));
  }
  return recipe;
}

Result<Recipe> LoadRecipe(const std::string& path) {
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxRecipeBytes));
  return ParseRecipe(text, path);
}

}  // namespace mm01::train
