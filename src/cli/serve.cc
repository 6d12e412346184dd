// mm01 serve: the model for many users at once, over HTTP.
#include <fcntl.h>
#include <fmt/core.h>
#include <malloc.h>
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>
#include <optional>

#include "base/format.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/serve_plan.h"
#include "infer/machine.h"
#include "infer/service.h"
#include "io/file.h"
#include "server/api.h"
#include "server/http.h"

namespace mm01::cli {
namespace {

constexpr int64_t kServedContext = 32768;
constexpr size_t kMinBodyBytes = 2'000'000;
constexpr size_t kBodyBytesPerToken = 16;
constexpr double kDrainSeconds = 25, kCloseSeconds = 3;
constexpr rlim_t kWantedDescriptors = 8192;
constexpr int64_t kMaxKeyFileBytes = 1 << 20;

struct ServeFlags {
  ModelFlags model;
  std::optional<std::string> host, name, keys, snapshot_dir;
  int64_t port = 8080;
  std::vector<std::string> cors;
  bool open = false;
  int64_t sequences = 4;
  int64_t queue = 256;
  int64_t watchdog = 0;            // seconds
  int64_t snapshot_memory = 1024;  // MiB
  int64_t snapshot_disk = 8192;    // MiB
};

// SIGINT and SIGTERM end the wait instead of the program; a third of them ends it at once.
class StopSignals {
 public:
  StopSignals() {
    Check(::pipe2(pipe_, O_CLOEXEC) == 0, "no pipe for signals");
    struct sigaction action {};
    action.sa_handler = OnSignal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
  }
  ~StopSignals() {
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
    ::close(pipe_[0]);
    ::close(pipe_[1]);
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  void Wait() {
    pollfd wait{pipe_[0], POLLIN, 0};
    while (::poll(&wait, 1, -1) < 0) {
    }
  }

 private:
  static void OnSignal(int) {
    static volatile std::sig_atomic_t count = 0;
    count = count + 1;
    if (count > 2) _exit(kExitInterrupted);
    const char byte = 0;
    [[maybe_unused]] const ssize_t n = ::write(pipe_[1], &byte, 1);
  }

  static inline int pipe_[2] = {-1, -1};
};

Result<std::vector<std::string>> ReadKeys(const std::optional<std::string>& path) {
  std::vector<std::string> keys;
  if (!path) return keys;
  MM01_ASSIGN_OR_RETURN(const std::string text, ReadFile(*path, kMaxKeyFileBytes));
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    while (!line.empty() && (line.back() == ' ' || line.back() == '\r')) line.pop_back();
    if (!line.empty()) keys.push_back(std::move(line));
  }
  if (keys.empty()) return Status::Invalid(fmt::format("{}: no key, wanted one a line", *path));
  return keys;
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

// As many connections as the server takes need descriptors, of which shells give 1,024.
void AllowManyDescriptors() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::max(limit.rlim_cur, std::min(limit.rlim_max, kWantedDescriptors));
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

// Bodies, texts and snapshots go back to the system when they are freed. Else glibc keeps blocks as
// large as any that was freed before, in an arena for each thread.
void ReturnLargeBlocks() {
  mallopt(M_MMAP_THRESHOLD, 256 << 10);
}

class ServeRun {
 public:
  explicit ServeRun(const ServeFlags& flags) : flags_(flags), notes_(flags.model.quiet) {}

  Result<int> Run() {
    AllowManyDescriptors();
    ReturnLargeBlocks();
    MM01_RETURN_IF_ERROR(Plan());
    MM01_RETURN_IF_ERROR(Listen());
    MM01_RETURN_IF_ERROR(StartService());
    StopSignals signals;
    notes_.Write(fmt::format("ready: http://{}:{}/ in a browser, http://{}:{}/v1 for clients\n",
                             host_, http_->port(), host_, http_->port()));
    signals.Wait();
    notes_.Write("stopping: no new requests, those that run may end\n");
    api_->Stop();
    service_->Drain(kDrainSeconds);
    http_->Stop(kCloseSeconds);
    service_.reset();
    return kExitOk;
  }

 private:
  Status Plan() {
    MM01_ASSIGN_OR_RETURN(const TextConfig config, LoadTextConfig(flags_.model.model));
    MM01_ASSIGN_OR_RETURN(const WeightType weights,
                          WeightsInMemory(flags_.model.weights, flags_.model.model));
    MM01_ASSIGN_OR_RETURN(device_, ChosenDevice(flags_.model.device));
    const MemoryOptions options{.weights = weights,
                                .kv = KvType(flags_.model.kv).value_or(DefaultKvType(weights)),
                                .context_tokens = flags_.model.context.value_or(kServedContext),
                                .num_sequences = flags_.sequences,
                                .chunk_rows = ServeStepRows(device_),
                                .device = device_};
    const int64_t beside = device_ == Device::kCpu ? flags_.snapshot_memory << 20 : 0;
    MM01_ASSIGN_OR_RETURN(const ServePlan plan,
                          PlanServe(config, options, beside, infer::AvailableMemoryBytes(device_)));
    notes_.WriteFaint(plan.ToText());
    return CheckServeFits(config, plan);
  }

  Status Listen() {
    server::ApiOptions options{.cors_origins = flags_.cors};
    MM01_ASSIGN_OR_RETURN(options.keys, ReadKeys(flags_.keys));
    host_ = flags_.host.value_or("127.0.0.1");
    if (!IsLoopback(host_) && options.keys.empty() && !flags_.open) {
      return Status::Invalid(fmt::format(
          "--host {} lets other machines in without a key, wanted --api-keys FILE, or --open where "
          "something in front asks for one",
          host_));
    }
    api_ = std::make_unique<server::Api>(std::move(options));
    const server::HttpOptions http{.host = host_, .port = static_cast<uint16_t>(flags_.port)};
    MM01_ASSIGN_OR_RETURN(http_, server::HttpServer::Start(http, *api_));
    return Status::Ok();
  }

  Status StartService() {
    MM01_ASSIGN_OR_RETURN(LoadedModel model, LoadModel(flags_.model,
                                                       {.context_tokens = kServedContext,
                                                        .num_sequences = flags_.sequences,
                                                        .prefill_rows = ServeStepRows(device_),
                                                        .on_plan = [](const MemoryPlan&) {}},
                                                       notes_));
    if (model.engine->tokenizer() == nullptr) {
      return Status::NotFound(
          fmt::format("{}: no tokenizer.json, wanted one to serve text", flags_.model.model));
    }
    MM01_ASSIGN_OR_RETURN(
        service_, infer::Service::Start(std::move(model.engine),
                                        {.max_queue = flags_.queue,
                                         .step_rows = ServeStepRows(device_),
                                         .snapshot_bytes = flags_.snapshot_memory << 20,
                                         .snapshot_dir = flags_.snapshot_dir.value_or(""),
                                         .snapshot_disk_bytes = flags_.snapshot_disk << 20,
                                         .stuck_seconds = static_cast<double>(flags_.watchdog),
                                         .on_stuck = [this] { EndAsStuck(); }}));
    const auto folder = std::filesystem::weakly_canonical(flags_.model.model).filename().string();
    auto served = server::ServedModelOf(service_->engine(), flags_.name.value_or(folder),
                                        static_cast<int64_t>(std::time(nullptr)));
    const auto context = static_cast<size_t>(served.context_tokens);
    http_->set_body_bytes(std::max(kMinBodyBytes, kBodyBytesPerToken * context));
    api_->Serve(*service_, std::move(served));
    return Status::Ok();
  }

  // The thread that hangs cannot be ended, so the process is: a supervisor starts it again.
  [[noreturn]] void EndAsStuck() const {
    std::fputs(fmt::format("mm01: a step has taken {} seconds and does not end\n", flags_.watchdog)
                   .c_str(),
               stderr);
    ::_exit(kExitFailed);
  }

  const ServeFlags& flags_;
  Notes notes_;
  Device device_ = Device::kCpu;
  std::string host_;
  // The service ends before the server: its listeners hold connections.
  std::unique_ptr<server::Api> api_;
  std::unique_ptr<server::HttpServer> http_;
  std::unique_ptr<infer::Service> service_;
};

void AddServerFlags(Command& command, ServeFlags* flags) {
  command.Section("Server");
  command.Text("--host", "ADDRESS", &flags->host,
               "address to listen on (default: 127.0.0.1, this machine alone)");
  command.Whole("--port", "N", &flags->port, {0, 65535}, "port to listen on; 0 takes a free one");
  command.Text("--api-keys", "FILE", &flags->keys,
               "keys that clients may use, one a line; without it, no key is asked for");
  command.Switch("--open", &flags->open, "listen beyond this machine without a key all the same");
  command.Texts("--cors", "ORIGIN", &flags->cors,
                "pages of this origin may ask, '*' is all; may be given several times");
  command.Text("--name", "NAME", &flags->name,
               "what clients call the model (default: the folder's name)");
  command.Whole("--sequences", "N", &flags->sequences, {1, 1 << 16},
                "requests that are read or written at once");
  command.Whole("--queue", "N", &flags->queue, {0, 1 << 20}, "requests that may wait beside these");
  command.Whole(
      "--watchdog", "SECONDS", &flags->watchdog, {0, 1 << 20},
      "ends the program with exit code 1 where one step takes so long, for a supervisor to "
      "start it again; 0: never");
  command.Section("Snapshots");
  command.Whole("--snapshot-memory", "MIB", &flags->snapshot_memory, {0, 1 << 30},
                "memory for states at ends of turns, from where later prompts go on");
  command.Text("--snapshot-dir", "DIR", &flags->snapshot_dir,
               "folder that keeps them over a restart");
  command.Whole("--snapshot-disk", "MIB", &flags->snapshot_disk, {0, 1 << 30},
                "room in that folder");
}

}  // namespace

void AddServe(CommandLine& line) {
  auto flags = std::make_shared<ServeFlags>();
  Command& command = line.Add(
      {"serve",
       "Serves a model over HTTP: OpenAI's API, and a page for the browser.",
       "Says first what fits. Listens while it loads; GET /ready is 200 when it is done. The first "
       "Ctrl-C or SIGTERM lets what runs end, for 25 seconds at most; the third ends the program "
       "at "
       "once. docs/api.md describes the API.",
       {"mm01 serve models/nano", "mm01 serve models/nano --context 1048576 --sequences 2",
        "mm01 serve models/nano --host 0.0.0.0 --api-keys keys.txt --snapshot-dir snapshots"}});
  AddModelArgument(command, &flags->model);
  AddServerFlags(command, flags.get());
  AddModelFlags(command, &flags->model, "32,768, of each sequence");
  command.Action([flags] {
    const Result<int> code = ServeRun(*flags).Run();
    return code.ok() ? *code : ReportError(code.status());
  });
}

}  // namespace mm01::cli
