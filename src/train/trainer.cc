#include "train/trainer.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "base/json.h"
#include "train/checkpoint.h"
#include "train/export.h"

namespace mm01::train {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Neighbouring rows in passes of at most max_tokens.
std::vector<TrainBatch> PackPasses(const std::vector<Row>& rows, int64_t max_tokens) {
  std::vector<TrainBatch> passes;
  for (const Row& row : rows) {
    if (passes.empty() || std::ssize(passes.back().ids) + row.length() > max_tokens) {
      passes.push_back({.cu_seqlens = {0}});
    }
    TrainBatch& pass = passes.back();
    const auto begin = static_cast<int64_t>(pass.ids.size());
    pass.ids.insert(pass.ids.end(), row.ids.begin(), row.ids.end());
    pass.targets.insert(pass.targets.end(), row.targets.begin(), row.targets.end());
    for (size_t i = 1; i < row.cu_seqlens.size(); ++i) {
      pass.cu_seqlens.push_back(begin + row.cu_seqlens[i]);
    }
  }
  return passes;
}

double CountedTargets(const std::vector<TrainBatch>& passes) {
  double counted = 0;
  for (const TrainBatch& pass : passes) {
    for (const int32_t target : pass.targets) counted += target >= 0 ? 1 : 0;
  }
  return counted;
}

// The first theta that a stage up to this one gives, else the model's own.
double RopeTheta(const Recipe& recipe, int64_t stage) {
  double theta = recipe.config.rope_theta;
  for (int64_t i = 0; i <= stage; ++i) {
    const StageSpec& s = recipe.stages[static_cast<size_t>(i)];
    if (s.rope_theta > 0) theta = s.rope_theta;
  }
  return theta;
}

}  // namespace

Result<std::unique_ptr<Trainer>> Trainer::Create(const Recipe& recipe,
                                                 std::shared_ptr<const TrainData> data,
                                                 const TrainerPlace& place) {
  std::unique_ptr<Trainer> trainer(new Trainer(recipe, std::move(data), place));
  TextConfig config = recipe.config;
  config.rope_theta = RopeTheta(recipe, 0);
  MM01_ASSIGN_OR_RETURN(trainer->model_, place.make_model(place.queue, config, recipe.model));
  if (recipe.from.empty()) {
    trainer->model_->Initialise(recipe.seed);
  } else {
    MM01_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(recipe.from));
    MM01_RETURN_IF_ERROR(trainer->model_->Load(checkpoint));
  }
  trainer->optimizer_ =
      std::make_unique<Optimizer>(place.queue, place.group, recipe.optimizer, *trainer->model_);
  return trainer;
}

// A stage with another RoPE base is another model with the same parameters.
Status Trainer::EnterStage(int64_t stage) {
  if (stage == stage_) return Status::Ok();
  guard_.BeginStage();
  stage_ = stage;
  TextConfig config = model_->config();
  config.rope_theta = RopeTheta(recipe_, stage);
  if (config.rope_theta == model_->config().rope_theta) return Status::Ok();
  std::vector<std::vector<float>> values;
  for (const TrainParameter& p : model_->parameters()) {
    OnHost(place_.queue, p.value,
           [&](std::span<float> v) { values.emplace_back(v.begin(), v.end()); });
  }
  model_.reset();
  MM01_ASSIGN_OR_RETURN(model_, place_.make_model(place_.queue, config, recipe_.model));
  size_t i = 0;
  for (const TrainParameter& p : model_->parameters()) {
    const std::vector<float>& from = values[i++];
    OnHost(place_.queue, p.value,
           [&](std::span<float> v) { std::copy(from.begin(), from.end(), v.begin()); });
  }
  model_->ParametersChanged();
  optimizer_->SetModel(*model_);
  return Status::Ok();
}

// Overfitting, every step has the rows of step 0.
Result<StepData> Trainer::TakeData() {
  if (place_.overfit) {
    step_data_.Seek({});
    return step_data_.Take(0, std::nullopt);
  }
  const bool last = step_ + 1 >= recipe_.total_steps();
  return step_data_.Take(step_, last ? std::nullopt : std::optional(step_ + 1));
}

Trainer::Losses Trainer::RunPasses(const std::vector<TrainBatch>& passes) {
  double totals[] = {CountedTargets(passes), static_cast<double>(passes.size())};
  place_.group.AllReduceSum(std::span(totals));
  const double scale = totals[0] > 0 ? 1 / totals[0] : 0, auxiliary_scale = 1 / totals[1];
  Losses sum;
  sum.expert_rows.assign(static_cast<size_t>(config().num_layers()),
                         std::vector<double>(static_cast<size_t>(config().num_experts), 0));
  model_->ZeroGradients();
  for (const TrainBatch& pass : passes) {
    const TrainLosses losses = model_->ForwardBackward(pass, scale, auxiliary_scale);
    sum.cross_entropy += losses.cross_entropy;
    sum.auxiliary += losses.auxiliary;
    sum.dropped += static_cast<double>(losses.dropped_rows);
    for (size_t l = 0; l < losses.expert_rows.size(); ++l) {
      for (size_t e = 0; e < losses.expert_rows[l].size(); ++e) {
        sum.expert_rows[l][e] += static_cast<double>(losses.expert_rows[l][e]);
      }
    }
  }
  sum.counted = totals[0];
  sum.passes = totals[1];
  AddUp(&sum);
  optimizer_->ReduceGradients();
  return sum;
}

void Trainer::AddUp(Losses* losses) {
  double sums[] = {losses->cross_entropy, losses->auxiliary, losses->dropped};
  place_.group.AllReduceSum(std::span(sums));
  losses->cross_entropy = sums[0];
  losses->auxiliary = sums[1];
  losses->dropped = sums[2];
  for (std::vector<double>& layer : losses->expert_rows) {
    place_.group.AllReduceSum(std::span(layer));
  }
}

Result<StepReport> Trainer::Step() {
  Check(!done(), "a run that is done takes no step");
  const auto begin = Clock::now();
  const Recipe::Place place = recipe_.At(place_.overfit ? 0 : step_);
  MM01_RETURN_IF_ERROR(EnterStage(place.stage));
  const auto asked = Clock::now();
  MM01_ASSIGN_OR_RETURN(const StepData data, TakeData());
  const std::vector<TrainBatch> passes = PackPasses(data.rows, recipe_.model.max_tokens);
  StepReport report{.step = step_,
                    .stage = place.stage,
                    .length = recipe_.stages[static_cast<size_t>(place.stage)].length,
                    .data_seconds = SecondsSince(asked)};
  report.tokens = report.length * std::ssize(data.plans);
  Losses losses = RunPasses(passes);
  report.loss = losses.counted > 0 ? losses.cross_entropy / losses.counted : 0;
  report.auxiliary = losses.auxiliary / losses.passes;
  report.dropped_rows = losses.dropped;
  report.expert_rows = std::move(losses.expert_rows);
  report.gradient_norm = optimizer_->GradientNorm();
  report.learning_rate = LearningRate(recipe_.schedule, step_, recipe_.total_steps());
  report.verdict = guard_.Judge(report.loss, report.gradient_norm);
  report.skipped = guard_.state().skipped;
  ++step_;
  tokens_ += report.tokens;
  if (report.verdict.skip) {
    for (const RowPlan& plan : data.plans) {
      report.sources.push_back(fmt::format("{} row {}", plan.name, plan.number));
    }
    if (guard_.hopeless()) MM01_RETURN_IF_ERROR(RollBack(report.verdict));
  } else {
    optimizer_->Update(report.learning_rate, report.gradient_norm);
  }
  report.seconds = SecondsSince(begin);
  return report;
}

Status Trainer::RollBack(const Verdict& verdict) {
  const int64_t skipped = guard_.state().skipped_in_row, last = step_ - 1;
  std::vector<std::string> notes;
  MM01_ASSIGN_OR_RETURN(const bool found, Resume(&notes));
  return Status::Invalid(fmt::format(
      "{} steps in a row were skipped, the last of them, step {}, because {}; stopped, {}; a lower "
      "schedule.learning_rate or another seed may get past this place",
      skipped, last, verdict.reason,
      found ? fmt::format("the model is again that of the checkpoint of step {}", step_)
            : "no checkpoint was there to go back to"));
}

Status Trainer::Save() {
  std::vector<TensorRange> mine;
  const auto parameters = model_->parameters();
  for (const Optimizer::Moments& moments : optimizer_->moments()) {
    const ParameterRange& r = moments.range;
    const TrainParameter& p = parameters[r.parameter];
    const auto add = [&](const char* kind, const Tensor& data) {
      mine.push_back({.name = std::string(kind) + "/" + p.name,
                      .begin = r.begin,
                      .size = p.value.size(),
                      .data = data});
    };
    add("value", Flat(p.value, r.begin, r.end));
    add("m", moments.m);
    add("v", moments.v);
  }
  return WriteCheckpoint(place_.queue, place_.group, place_.checkpoints, step_, State(), mine,
                         {recipe_.checkpoint.keep_last, recipe_.checkpoint.keep_every});
}

Result<bool> Trainer::Resume(std::vector<std::string>* notes) {
  int64_t step = -1;
  if (place_.group.rank() == 0) {
    const Newest newest = FindNewest(place_.checkpoints);
    step = newest.step;
    *notes = newest.notes;
  }
  place_.group.Broadcast(std::span(&step, 1), 0);
  if (step < 0) return false;
  MM01_RETURN_IF_ERROR(Load(step));
  return true;
}

Status Trainer::Load(int64_t step) {
  MM01_ASSIGN_OR_RETURN(const SavedCheckpoint saved,
                        SavedCheckpoint::Open(place_.checkpoints, step));
  MM01_RETURN_IF_ERROR(SetState(saved.state()));
  if (!done()) MM01_RETURN_IF_ERROR(EnterStage(recipe_.At(step_).stage));
  MM01_RETURN_IF_ERROR(SetState(saved.state()));
  const auto read = [&](const std::string& name, int64_t size, int64_t begin, const Tensor& to) {
    Status status;
    OnHost(place_.queue, to,
           [&](std::span<float> out) { status = saved.Read(name, size, begin, out); });
    return status;
  };
  const auto parameters = model_->parameters();
  for (const TrainParameter& p : parameters) {
    const int64_t size = p.value.size();
    MM01_RETURN_IF_ERROR(read("value/" + p.name, size, 0, Flat(p.value, 0, size)));
  }
  for (const Optimizer::Moments& moments : optimizer_->moments()) {
    const ParameterRange& r = moments.range;
    const TrainParameter& p = parameters[r.parameter];
    MM01_RETURN_IF_ERROR(read("m/" + p.name, p.value.size(), r.begin, moments.m));
    MM01_RETURN_IF_ERROR(read("v/" + p.name, p.value.size(), r.begin, moments.v));
  }
  model_->ParametersChanged();
  return Status::Ok();
}

Json Trainer::State() const {
  const Guard::State& guard = guard_.state();
  const DataPosition& data = step_data_.position();
  return {{"recipe", recipe_.name},
          {"step", step_},
          {"tokens", tokens_},
          {"seed", recipe_.seed},
          {"updates", optimizer_->updates()},
          {"stage", stage_},
          {"data", {{"rows", data.rows}, {"stage", data.stage}, {"tokens", data.tokens}}},
          {"guard",
           {{"losses", guard.losses},
            {"norms", guard.norms},
            {"skipped", guard.skipped},
            {"skipped_in_row", guard.skipped_in_row}}}};
}

Status Trainer::SetState(const Json& state) {
  const uint64_t seed = state.at("seed").get<uint64_t>();
  if (seed != recipe_.seed) {
    return Status::Invalid(fmt::format("{}: the checkpoint is of seed {}, the recipe has {}",
                                       place_.checkpoints, seed, recipe_.seed));
  }
  step_ = state.at("step").get<int64_t>();
  tokens_ = state.at("tokens").get<int64_t>();
  optimizer_->set_updates(state.at("updates").get<int64_t>());
  const Json& data = state.at("data");
  step_data_.Seek({.rows = data.at("rows").get<int64_t>(),
                   .stage = data.at("stage").get<int64_t>(),
                   .tokens = data.at("tokens").get<std::map<std::string, int64_t>>()});
  const Json& guard = state.at("guard");
  guard_.SetState({.losses = guard.at("losses").get<std::deque<double>>(),
                   .norms = guard.at("norms").get<std::deque<double>>(),
                   .skipped = guard.at("skipped").get<int64_t>(),
                   .skipped_in_row = guard.at("skipped_in_row").get<int64_t>()});
  return Status::Ok();
}

Result<std::vector<ValidationScore>> Trainer::Validate() {
  std::vector<int64_t> lengths = recipe_.validation.lengths;
  if (lengths.empty()) lengths = {recipe_.stages[static_cast<size_t>(stage_)].length};
  std::vector<ValidationScore> scores;
  for (const int64_t length : lengths) {
    auto found = validation_.find(length);
    if (found == validation_.end()) {
      MM01_ASSIGN_OR_RETURN(std::vector<Row> rows, ValidationRows(recipe_, *data_, length));
      found = validation_.emplace(length, PartOf(rows, Part())).first;
    }
    double sums[] = {0, 0};
    for (const TrainBatch& pass : PackPasses(found->second, recipe_.model.max_tokens)) {
      const TrainLosses losses = model_->Evaluate(pass);
      sums[0] += losses.cross_entropy;
      sums[1] += static_cast<double>(losses.counted);
    }
    place_.group.AllReduceSum(std::span(sums));
    scores.push_back({.length = length, .loss = sums[1] > 0 ? sums[0] / sums[1] : 0});
  }
  return scores;
}

Status Trainer::Export(const std::string& folder) {
  if (place_.group.rank() != 0) return Status::Ok();
  return ExportModel(place_.queue, *model_,
                     {.folder = folder,
                      .tokenizer = recipe_.tokenizer,
                      .type = recipe_.export_float32 ? DType::kF32 : DType::kBF16,
                      .auxiliary_coefficient = recipe_.model.auxiliary_coefficient});
}

}  // namespace mm01::train
