#include "train/checkpoint.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <functional>
#include <utility>

#include "io/file.h"
#include "io/json_fields.h"
#include "train/digest.h"
#include "train/optimizer.h"

namespace mm01::train {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxManifestBytes = 1 << 30;
constexpr const char* kDone = "DONE";
constexpr const char* kManifest = "manifest.json";

std::string StepFolder(const std::string& folder, int64_t step) {
  return fmt::format("{}/step-{:08}", folder, step);
}

std::string RankName(int rank) {
  return fmt::format("rank-{:05}", rank);
}

Status SyncFolder(const std::string& folder) {
  const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0 || (::fsync(fd.get()) != 0 && errno != EINVAL)) {
    return Status::Io(fmt::format("{}: cannot write the folder to disk: {}", folder,
                                  std::generic_category().message(errno)));
  }
  return Status::Ok();
}

Status FsError(const std::string& path, const char* what, const std::error_code& error) {
  return Status::Io(fmt::format("{}: cannot {}: {}", path, what, error.message()));
}

// This rank's two files.
Status WriteRank(Queue& queue, const std::string& stem, std::span<const TensorRange> mine) {
  std::vector<TensorInfo> infos;
  for (const TensorRange& r : mine) {
    infos.push_back({.name = r.name, .dtype = DType::kF32, .shape = {r.data.size()}});
  }
  MM01_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                        SafetensorsWriter::Create(stem + ".safetensors", std::move(infos)));
  Json parts = Json::array();
  for (const TensorRange& r : mine) {
    Status status;
    OnHost(queue, r.data, [&](std::span<float> values) {
      const auto bytes = std::as_bytes(values);
      parts.push_back({{"tensor", r.name},
                       {"begin", r.begin},
                       {"end", r.begin + r.data.size()},
                       {"size", r.size},
                       {"xxh3_128", DigestOf(bytes)}});
      status = writer.Append(bytes);
    });
    MM01_RETURN_IF_ERROR(status);
  }
  MM01_RETURN_IF_ERROR(writer.Finish());
  return WriteFileAtomically(stem + ".json", JsonText(parts, 1) + "\n");
}

Status MakeEmpty(const std::string& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) return FsError(folder, "clear away", error);
  fs::create_directories(folder, error);
  return error ? FsError(folder, "create", error) : Status::Ok();
}

// manifest.json, and DONE behind it.
Status WriteManifest(const std::string& folder, int num_ranks, const Json& state) {
  Json ranks = Json::array();
  for (int r = 0; r < num_ranks; ++r) {
    const std::string name = RankName(r);
    MM01_ASSIGN_OR_RETURN(const std::string parts,
                          ReadFile(folder + "/" + name + ".json", kMaxManifestBytes));
    ranks.push_back({{"name", name}, {"xxh3_128", DigestOf(parts)}});
  }
  const Json manifest = {
      {"format", "mm01-checkpoint"}, {"version", 1}, {"ranks", ranks}, {"state", state}};
  const std::string text = JsonText(manifest, 1) + "\n";
  MM01_RETURN_IF_ERROR(WriteFileAtomically(folder + "/" + kManifest, text));
  return WriteFileAtomically(folder + "/" + kDone, DigestOf(text) + "\n");
}

// Gives the finished folder its name, in one step: a reader finds what was there, or this.
Status Publish(const std::string& temp, const std::string& final) {
  MM01_RETURN_IF_ERROR(SyncFolder(temp));
  const bool exists = fs::exists(final);
  constexpr unsigned kExchange = 1u << 1;  // RENAME_EXCHANGE
  const unsigned flags = exists ? kExchange : 0;
  if (::syscall(SYS_renameat2, AT_FDCWD, temp.c_str(), AT_FDCWD, final.c_str(), flags) != 0) {
    const std::error_code error(errno, std::generic_category());
    return FsError(final, "rename the finished folder to this name", error);
  }
  return SyncFolder(fs::path(final).parent_path().string());
}

// DONE goes first, so that what is half removed is no checkpoint.
void Remove(const std::string& folder) {
  std::error_code ignored;
  fs::remove(folder + "/" + kDone, ignored);
  fs::remove_all(folder, ignored);
}

void Prune(const std::string& folder, const CheckpointKeep& keep) {
  int64_t num_done = 0;
  for (const int64_t step : ListCheckpoints(folder)) {
    const std::string path = StepFolder(folder, step);
    const bool done = fs::exists(path + "/" + kDone);
    const bool for_good = done && keep.every > 0 && step % keep.every == 0;
    if (done) ++num_done;
    if (!for_good && (!done || num_done > keep.last)) Remove(path);
  }
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    if (entry.path().extension() == ".tmp") Remove(entry.path().string());
  }
}

// Whether all ranks are well; a rank that is says what others failed of, as far as it can.
Status Agree(Group& group, const Status& mine) {
  double failed = mine.ok() ? 0 : 1;
  group.AllReduceSum(std::span(&failed, 1));
  if (!mine.ok() || failed == 0) return mine;
  return Status::Io("another rank could not write its part of the checkpoint");
}

}  // namespace

Status WriteCheckpoint(Queue& queue, Group& group, const std::string& folder, int64_t step,
                       const Json& state, std::span<const TensorRange> mine,
                       const CheckpointKeep& keep) {
  const std::string final = StepFolder(folder, step), temp = final + ".tmp";
  const bool first = group.rank() == 0;
  MM01_RETURN_IF_ERROR(Agree(group, first ? MakeEmpty(temp) : Status::Ok()));
  MM01_RETURN_IF_ERROR(Agree(group, WriteRank(queue, temp + "/" + RankName(group.rank()), mine)));
  const auto finish = [&]() -> Status {
    MM01_RETURN_IF_ERROR(WriteManifest(temp, group.size(), state));
    MM01_RETURN_IF_ERROR(Publish(temp, final));
    Prune(folder, keep);
    return Status::Ok();
  };
  return Agree(group, first ? finish() : Status::Ok());
}

std::vector<int64_t> ListCheckpoints(const std::string& folder) {
  std::vector<int64_t> steps;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    int64_t step = 0;
    const char* end = name.data() + name.size();
    if (!name.starts_with("step-")) continue;
    const auto parsed = std::from_chars(name.data() + 5, end, step);
    if (parsed.ec == std::errc() && parsed.ptr == end) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end(), std::greater<>());
  return steps;
}

Result<SavedCheckpoint> SavedCheckpoint::Open(const std::string& folder, int64_t step) {
  SavedCheckpoint saved;
  saved.path_ = StepFolder(folder, step);
  const auto wrong = [&](const char* what) {
    return Status::Invalid(fmt::format("{}: {}", saved.path_, what));
  };
  const Result<std::string> done = ReadFile(saved.path_ + "/" + kDone, 4096);
  if (done.status().code() == Code::kNotFound) {
    return wrong("has no DONE, so it was not written to its end");
  }
  MM01_RETURN_IF_ERROR(done.status());
  const std::string path = saved.path_ + "/" + kManifest;
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxManifestBytes));
  if (DigestOf(text) + "\n" != *done) return wrong("damaged: manifest.json and DONE disagree");
  MM01_ASSIGN_OR_RETURN(const Json manifest, ParseJson(text, path));
  if (!manifest.is_object() || manifest.value("format", "") != "mm01-checkpoint" ||
      manifest.value("version", 0) != 1) {
    return wrong("is no checkpoint of version 1");
  }
  saved.state_ = manifest.at("state");
  for (const Json& rank : manifest.at("ranks")) {
    MM01_RETURN_IF_ERROR(
        saved.OpenRank(rank.at("name").get<std::string>(), rank.at("xxh3_128").get<std::string>()));
  }
  for (auto& [name, parts] : saved.parts_) {
    std::sort(parts.begin(), parts.end(),
              [](const Part& a, const Part& b) { return a.begin < b.begin; });
  }
  return saved;
}

// A .json whose hash is that of the manifest, which is that of DONE, is as it was written.
Status SavedCheckpoint::OpenRank(const std::string& name, const std::string& digest) {
  const std::string stem = path_ + "/" + name;
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(stem + ".json", kMaxManifestBytes));
  if (DigestOf(text) != digest) {
    return Status::Invalid(fmt::format("{}.json: damaged: manifest.json says {}", stem, digest));
  }
  MM01_ASSIGN_OR_RETURN(const Json parts, ParseJson(text, stem + ".json"));
  MM01_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(stem + ".safetensors"));
  for (const Json& json : parts) {
    Part part{.file = files_.size(),
              .tensor = json.at("tensor").get<std::string>(),
              .begin = json.at("begin").get<int64_t>(),
              .end = json.at("end").get<int64_t>(),
              .size = json.at("size").get<int64_t>(),
              .digest = json.at("xxh3_128").get<std::string>()};
    const TensorInfo* info = file.Find(part.tensor);
    if (info == nullptr || info->dtype != DType::kF32 ||
        info->num_elements() != part.end - part.begin) {
      return Status::Invalid(fmt::format("{}.safetensors: damaged: wanted {} float32 of {}", stem,
                                         part.end - part.begin, part.tensor));
    }
    parts_[part.tensor].push_back(std::move(part));
  }
  files_.push_back(std::move(file));
  return Status::Ok();
}

Result<std::vector<float>> SavedCheckpoint::ReadPart(const Part& part) const {
  const SafetensorsFile& file = files_[part.file];
  MM01_ASSIGN_OR_RETURN(std::vector<float> values, file.ReadAll<float>(*file.Find(part.tensor)));
  if (DigestOf(std::as_bytes(std::span(values))) == part.digest) return values;
  return Status::Invalid(fmt::format("{}: damaged: the hash of {} is not that of its .json",
                                     file.path(), part.tensor));
}

Status SavedCheckpoint::Verify() const {
  for (const auto& [name, parts] : parts_) {
    for (const Part& part : parts) MM01_RETURN_IF_ERROR(ReadPart(part).status());
  }
  return Status::Ok();
}

Status SavedCheckpoint::Read(const std::string& name, int64_t size, int64_t begin,
                             std::span<float> out) const {
  const auto found = parts_.find(name);
  if (found == parts_.end()) {
    return Status::NotFound(fmt::format("{}: has no tensor {}", path_, name));
  }
  int64_t at = begin;  // what is filled so far ends here
  const int64_t end = begin + std::ssize(out);
  for (const Part& part : found->second) {
    if (part.size != size) {
      return Status::Invalid(
          fmt::format("{}: {} has {} elements, wanted {}", path_, name, part.size, size));
    }
    const int64_t first = std::max(part.begin, at), last = std::min(part.end, end);
    if (first >= last || first > at) continue;
    MM01_ASSIGN_OR_RETURN(const std::vector<float> values, ReadPart(part));
    std::copy(values.begin() + (first - part.begin), values.begin() + (last - part.begin),
              out.begin() + (first - begin));
    at = last;
  }
  if (at == end) return Status::Ok();
  return Status::Invalid(fmt::format("{}: {} lacks elements from {} on", path_, name, at));
}

Newest FindNewest(const std::string& folder) {
  Newest newest;
  for (const int64_t step : ListCheckpoints(folder)) {
    const Result<SavedCheckpoint> saved = SavedCheckpoint::Open(folder, step);
    const Status status = saved.ok() ? saved->Verify() : saved.status();
    if (status.ok()) {
      newest.step = step;
      break;
    }
    newest.notes.push_back(status.message());
  }
  return newest;
}

}  // namespace mm01::train
