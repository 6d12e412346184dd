#include "infer/snapshot_files.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "io/safetensors.h"

namespace mm01::infer {
namespace {

namespace fs = std::filesystem;
using Metadata = std::map<std::string, std::string>;
using Digest = std::array<std::byte, 16>;

constexpr const char* kSnapshotFormat = "mm01-snapshot";
constexpr const char* kSnapshotVersion = "1";
constexpr std::string_view kSuffix = ".snapshot";
constexpr int64_t kHeaderBytes = 2048;  // about, of a file
// A file has some megabytes, so a disk is kept busy by several at once. What a thread has read it
// checks while that is still in its cache.
constexpr int kReaders = 8;
constexpr int64_t kReadBytes = 1 << 20;

// Of what a file is, and a part of its bytes.
class SnapshotHash {
 public:
  SnapshotHash(const PrefixKey& key, const Metadata& metadata)
      : state_(XXH3_createState(), XXH3_freeState) {
    XXH3_128bits_reset(state_.get());
    std::string head = key.ToHex();
    for (const auto& [name, value] : metadata) head += ";" + name + "=" + value;
    Add(std::as_bytes(std::span(head)));
  }
  void Add(std::span<const std::byte> data) {
    XXH3_128bits_update(state_.get(), data.data(), data.size());
  }
  Digest Value() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
    Digest digest;
    std::memcpy(digest.data(), canonical.digest, digest.size());
    return digest;
  }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

std::optional<PrefixKey> ParseKey(std::string_view hex) {
  PrefixKey key;
  if (hex.size() != 2 * key.bytes.size()) return std::nullopt;
  for (size_t i = 0; i < key.bytes.size(); ++i) {
    const char* at = hex.data() + 2 * i;
    const auto [end, error] = std::from_chars(at, at + 2, key.bytes[i], 16);
    if (error != std::errc() || end != at + 2) return std::nullopt;
  }
  return key.ToHex() == hex ? std::optional(key) : std::nullopt;
}

std::optional<int64_t> ParsePosition(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  if (!whole || value < 0 || value % kBlock != 0) return std::nullopt;
  return value;
}

std::vector<TensorInfo> Layout(int64_t begin, int64_t end, int64_t border_bytes,
                               int64_t page_bytes) {
  std::vector<TensorInfo> all;
  const auto add = [&](const char* name, std::vector<int64_t> shape) {
    TensorInfo info;
    info.name = name;
    info.dtype = DType::kU8;
    info.shape = std::move(shape);
    all.push_back(std::move(info));
  };
  add("border", {border_bytes});
  if (page_bytes > 0) add("pages", {(end - begin) / kBlock, page_bytes});
  add("border_checksum", {16});
  if (page_bytes > 0) add("pages_checksum", {16});
  return all;
}

Metadata MetadataOf(const std::string& model, bool has_parent, const PrefixKey& parent,
                    int64_t begin, int64_t end) {
  return {{"format", kSnapshotFormat},
          {"version", kSnapshotVersion},
          {"model", model},
          {"begin", std::to_string(begin)},
          {"end", std::to_string(end)},
          {"parent", has_parent ? parent.ToHex() : ""}};
}

Status Damaged(const SafetensorsFile& file) {
  return Status::Invalid(file.path() + " is damaged: its checksum does not match its contents");
}

// Reads and checks tensor `name`: its first `unwanted_bytes` are not kept, the others fill `out`.
Status ReadChecked(const SafetensorsFile& file, const PrefixKey& key, const std::string& name,
                   int64_t unwanted_bytes, std::span<std::byte> out) {
  const TensorInfo* const tensor = file.Find(name);
  const TensorInfo* const checksum = file.Find(name + "_checksum");
  if (!tensor || !checksum || tensor->bytes != unwanted_bytes + std::ssize(out)) {
    return Damaged(file);
  }
  SnapshotHash hash(key, file.metadata());
  std::vector<std::byte> unwanted(static_cast<size_t>(std::min(unwanted_bytes, kReadBytes)));
  for (int64_t at = 0; at < tensor->bytes;) {
    const bool kept = at >= unwanted_bytes;
    const int64_t bytes = std::min(kReadBytes, (kept ? tensor->bytes : unwanted_bytes) - at);
    const std::span<std::byte> piece =
        (kept ? out.subspan(static_cast<size_t>(at - unwanted_bytes)) : std::span(unwanted))
            .first(static_cast<size_t>(bytes));
    MM01_RETURN_IF_ERROR(file.Read(*tensor, at, piece));
    hash.Add(piece);
    at += bytes;
  }
  MM01_ASSIGN_OR_RETURN(const auto stored, file.ReadAll<uint8_t>(*checksum));
  const Digest digest = hash.Value();
  const bool same = stored.size() == digest.size() &&
                    std::memcmp(stored.data(), digest.data(), digest.size()) == 0;
  return same ? Status::Ok() : Damaged(file);
}

}  // namespace

SnapshotFiles::SnapshotFiles(SnapshotFilesOptions options)
    : options_(std::move(options)), readers_(kReaders) {}

Result<std::unique_ptr<SnapshotFiles>> SnapshotFiles::Open(SnapshotFilesOptions options) {
  std::unique_ptr<SnapshotFiles> files(new SnapshotFiles(std::move(options)));
  const std::string& folder = files->options_.folder;
  std::error_code error;
  if (fs::create_directories(folder, error)) {
    fs::permissions(folder, fs::perms::owner_all, error);  // what users said is in there
  }
  if (error || !fs::is_directory(folder)) {
    return Status::Io(fmt::format("{}: cannot be made a folder for snapshots", folder));
  }
  MM01_RETURN_IF_ERROR(files->LockFolder());
  files->Scan();
  files->thread_ = std::thread([f = files.get()] { f->Work(); });
  return files;
}

SnapshotFiles::~SnapshotFiles() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

// The system lets go of it when the process ends, however that ends.
Status SnapshotFiles::LockFolder() {
  const std::string path = options_.folder + "/lock";
  lock_ = Descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (lock_.get() < 0) return Status::Io(path + ": cannot be written");
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) == 0) return Status::Ok();
  return Status::Io(options_.folder + " is in use by another process, wanted a folder of our own");
}

std::string SnapshotFiles::PathOf(const PrefixKey& key) const {
  return options_.folder + "/" + key.ToHex() + std::string(kSuffix);
}

// In order of last use, and parents before their children.
void SnapshotFiles::Scan() {
  std::vector<std::pair<fs::file_time_type, PrefixKey>> found;
  std::error_code error;
  for (const auto& file : fs::directory_iterator(options_.folder, error)) {
    const std::string name = file.path().filename().string();
    const size_t suffix = name.find(kSuffix);
    if (suffix == std::string::npos) continue;  // not ours
    const auto key = ParseKey(name.substr(0, suffix));
    Result<Entry> entry = Status::Invalid("a file that was never finished");
    if (key && suffix + kSuffix.size() == name.size()) entry = ReadHeader(*key);
    if (entry.ok()) {
      index_[*key] = *entry;
      bytes_ += entry->bytes;
      found.emplace_back(fs::last_write_time(file.path(), error), *key);
    } else {
      if (suffix + kSuffix.size() == name.size()) ++deleted_;
      fs::remove(file.path(), error);
    }
  }
  std::vector<PrefixKey> orphans;
  for (const auto& [key, entry] : index_) {
    const auto parent = index_.find(entry.parent);
    const bool fits = entry.has_parent ? parent != index_.end() && parent->second.end == entry.begin
                                       : entry.begin == 0;
    if (!fits) orphans.push_back(key);
  }
  for (const PrefixKey& key : orphans) EraseWithChildren(key);
  std::ranges::sort(found);
  for (const auto& [time, key] : found) {
    if (index_.contains(key)) Touch(key);
  }
  MakeRoom(0, nullptr);
}

Result<SnapshotFiles::Entry> SnapshotFiles::ReadHeader(const PrefixKey& key) const {
  MM01_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(PathOf(key)));
  const Status foreign = Status::Invalid(file.path() + " is no snapshot of this model");
  const auto value = [&](const char* name) {
    const auto found = file.metadata().find(name);
    return found == file.metadata().end() ? "" : found->second;
  };
  if (value("format") != kSnapshotFormat || value("version") != kSnapshotVersion ||
      value("model") != options_.model) {
    return foreign;
  }
  const auto begin = ParsePosition(value("begin")), end = ParsePosition(value("end"));
  if (!begin || !end || *begin >= *end) return foreign;
  const std::string parent = value("parent");
  const auto parent_key = ParseKey(parent);
  if (!parent.empty() && !parent_key) return foreign;
  for (const TensorInfo& wanted :
       Layout(*begin, *end, options_.border_bytes, options_.page_bytes)) {
    const TensorInfo* found = file.Find(wanted.name);
    if (!found || found->dtype != wanted.dtype || found->shape != wanted.shape) return foreign;
  }
  Entry entry{.has_parent = !parent.empty(), .begin = *begin, .end = *end};
  if (parent_key) entry.parent = *parent_key;
  const TensorInfo& last = file.tensors().back();
  entry.bytes = last.offset + last.bytes;
  return entry;
}

int64_t SnapshotFiles::Find(std::span<const PrefixKey> keys, int64_t limit) const {
  const std::lock_guard lock(mutex_);
  for (int64_t at = std::min(limit / kBlock, std::ssize(keys)); at > 0; --at) {
    if (index_.contains(keys[static_cast<size_t>(at - 1)])) return at * kBlock;
  }
  return 0;
}

void SnapshotFiles::Write(std::shared_ptr<const Snapshot> snapshot,
                          std::span<const PrefixKey> keys) {
  const auto blocks = static_cast<size_t>(snapshot->position / kBlock);
  const std::lock_guard lock(mutex_);
  if (index_.contains(snapshot->key)) return Touch(snapshot->key);
  const int64_t bytes = snapshot->border.bytes() + snapshot->segments.back()->pages.bytes();
  if (pending_bytes_ > 0 && pending_bytes_ + bytes > options_.most_pending_bytes) return;
  pending_bytes_ += bytes;
  jobs_.push_back({.write = std::move(snapshot),
                   .keys = {keys.begin(), keys.begin() + static_cast<int64_t>(blocks)},
                   .read = nullptr});
  changed_.notify_all();
}

void SnapshotFiles::Read(std::shared_ptr<Snapshot> snapshot) {
  const std::lock_guard lock(mutex_);
  // Somebody waits for this one.
  jobs_.push_front({.write = nullptr, .keys = {}, .read = std::move(snapshot)});
  changed_.notify_all();
}

std::vector<SnapshotFiles::ReadEnd> SnapshotFiles::TakeReadEnds() {
  const std::lock_guard lock(mutex_);
  return std::exchange(read_ends_, {});
}

void SnapshotFiles::Flush() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return jobs_.empty() && !busy_; });
}

int64_t SnapshotFiles::size() const {
  const std::lock_guard lock(mutex_);
  return std::ssize(index_);
}

int64_t SnapshotFiles::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

int64_t SnapshotFiles::deleted() const {
  const std::lock_guard lock(mutex_);
  return deleted_;
}

void SnapshotFiles::Work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    busy_ = true;
    lock.unlock();
    const bool is_read = job.read != nullptr;
    if (is_read) {
      const bool ok = ReadFiles(*job.read);
      lock.lock();
      read_ends_.push_back({.snapshot = std::move(job.read), .ok = ok});
    } else {
      WriteFile(*job.write, job.keys);
      lock.lock();
      pending_bytes_ -= job.write->border.bytes() + job.write->segments.back()->pages.bytes();
    }
    lock.unlock();
    job = {};  // memory of a snapshot, perhaps
    if (is_read) options_.on_read();
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

void SnapshotFiles::WriteFile(const Snapshot& snapshot, std::span<const PrefixKey> keys) {
  Entry entry{.end = snapshot.position};
  {
    const std::lock_guard lock(mutex_);
    if (index_.contains(snapshot.key)) return Touch(snapshot.key);
    for (auto key = keys.rbegin(); key != keys.rend() && !entry.has_parent; ++key) {
      const auto found = index_.find(*key);
      if (found == index_.end()) continue;
      entry.has_parent = true;
      entry.parent = *key;
      entry.begin = found->second.end;
    }
    entry.bytes = options_.border_bytes + (entry.end - entry.begin) / kBlock * options_.page_bytes +
                  kHeaderBytes;
    if (!MakeRoom(entry.bytes, entry.has_parent ? &entry.parent : nullptr)) return;
    bytes_ += entry.bytes;
  }
  const Status written = WriteContents(snapshot, entry);
  const std::lock_guard lock(mutex_);
  bytes_ -= entry.bytes;
  if (!written.ok()) return;  // a full disk, say: then this one is in memory only
  struct stat st {};
  if (::stat(PathOf(snapshot.key).c_str(), &st) == 0) entry.bytes = st.st_size;
  bytes_ += entry.bytes;
  index_[snapshot.key] = entry;
  Touch(snapshot.key);
}

Status SnapshotFiles::WriteContents(const Snapshot& snapshot, const Entry& entry) const {
  const Metadata metadata =
      MetadataOf(options_.model, entry.has_parent, entry.parent, entry.begin, entry.end);
  const int64_t page_bytes = options_.page_bytes;
  MM01_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(PathOf(snapshot.key),
                                Layout(entry.begin, entry.end, options_.border_bytes, page_bytes),
                                metadata));
  SnapshotHash border(snapshot.key, metadata), pages(snapshot.key, metadata);
  const std::span<const std::byte> s(snapshot.border.data(),
                                     static_cast<size_t>(snapshot.border.bytes()));
  border.Add(s);
  MM01_RETURN_IF_ERROR(writer.Append(s));
  for (int64_t page = entry.begin / kBlock; page_bytes > 0 && page < entry.end / kBlock; ++page) {
    const std::span data(snapshot.Page(page, page_bytes), static_cast<size_t>(page_bytes));
    pages.Add(data);
    MM01_RETURN_IF_ERROR(writer.Append(data));
  }
  MM01_RETURN_IF_ERROR(writer.Append(border.Value()));
  if (page_bytes > 0) MM01_RETURN_IF_ERROR(writer.Append(pages.Value()));
  return writer.Finish();
}

// The pages lie in the files of the snapshot and of those before it.
bool SnapshotFiles::ReadFiles(Snapshot& snapshot) {
  const Segment& segment = *snapshot.segments.back();
  std::vector<std::pair<PrefixKey, Entry>> files;
  {
    const std::lock_guard lock(mutex_);
    int64_t end = snapshot.position;
    for (PrefixKey key = snapshot.key;;) {
      const auto found = index_.find(key);
      if (found == index_.end()) return false;  // deleted in the meantime
      if (found->second.end != end) {           // a header that lies: its pages would not fit
        EraseWithChildren(key);
        return false;
      }
      files.emplace_back(key, found->second);
      end = found->second.begin;
      if (end <= segment.begin) break;
      key = found->second.parent;
    }
    Touch(snapshot.key);
  }
  ::utimensat(AT_FDCWD, PathOf(snapshot.key).c_str(), nullptr, 0);
  std::vector<Status> read(files.size() + 1);
  readers_.ParallelFor(std::ssize(read), [&](int64_t item, int) {
    const auto i = static_cast<size_t>(item);
    read[i] = i == 0 ? ReadBorder(snapshot.key, snapshot)
                     : ReadPages(files[i - 1].first, files[i - 1].second, segment);
  });
  // All that are damaged go, so it does not matter which was found first.
  bool all = true;
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < read.size(); ++i) {
    if (read[i].ok()) continue;
    EraseWithChildren(i == 0 ? snapshot.key : files[i - 1].first);
    all = false;
  }
  return all;
}

Status SnapshotFiles::ReadBorder(const PrefixKey& key, const Snapshot& snapshot) const {
  MM01_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(PathOf(key)));
  return ReadChecked(file, key, "border", 0,
                     {snapshot.border.data(), static_cast<size_t>(snapshot.border.bytes())});
}

Status SnapshotFiles::ReadPages(const PrefixKey& key, const Entry& entry,
                                const Segment& segment) const {
  const int64_t page_bytes = options_.page_bytes;
  if (page_bytes == 0) return Status::Ok();
  MM01_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(PathOf(key)));
  const int64_t begin = std::max(entry.begin, segment.begin);
  return ReadChecked(file, key, "pages", (begin - entry.begin) / kBlock * page_bytes,
                     {segment.pages.data() + (begin - segment.begin) / kBlock * page_bytes,
                      static_cast<size_t>((entry.end - begin) / kBlock * page_bytes)});
}

void SnapshotFiles::Touch(const PrefixKey& key) {
  for (auto at = index_.find(key); at != index_.end(); at = index_.find(at->second.parent)) {
    at->second.used = ++clock_;
    if (!at->second.has_parent) return;
  }
}

bool SnapshotFiles::MakeRoom(int64_t bytes, const PrefixKey* parent) {
  if (parent) Touch(*parent);
  const auto is_needed = [&](const PrefixKey& wanted) {
    for (auto at = parent ? index_.find(*parent) : index_.end(); at != index_.end();
         at = index_.find(at->second.parent)) {
      if (at->first == wanted) return true;
      if (!at->second.has_parent) return false;
    }
    return false;
  };
  if (bytes > options_.budget_bytes) return false;
  while (bytes_ + bytes > options_.budget_bytes) {
    const auto oldest =
        std::ranges::min_element(index_, {}, [](const auto& entry) { return entry.second.used; });
    if (oldest == index_.end() || is_needed(oldest->first)) return false;
    Erase(PrefixKey(oldest->first));
  }
  return true;
}

void SnapshotFiles::Erase(const PrefixKey& key) {
  std::error_code error;
  fs::remove(PathOf(key), error);
  const auto found = index_.find(key);
  if (found == index_.end()) return;
  bytes_ -= found->second.bytes;
  index_.erase(found);
}

void SnapshotFiles::EraseWithChildren(const PrefixKey& key) {
  std::vector<PrefixKey> doomed = {key};
  for (size_t i = 0; i < doomed.size(); ++i) {
    for (const auto& [child, entry] : index_) {
      if (entry.has_parent && entry.parent == doomed[i]) doomed.push_back(child);
    }
  }
  for (const PrefixKey& each : doomed) {
    if (index_.contains(each)) ++deleted_;
    Erase(each);
  }
}

}  // namespace mm01::infer
