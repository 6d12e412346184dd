// Many requests in every situation, each compared with the same request alone.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "infer/service.h"
#include "testing/service_client.h"
#include "testing/tiny_model.h"

namespace mm01::infer {
namespace {

class RandomRequests {
 public:
  explicit RandomRequests(uint64_t seed) : seed_(seed) {
    TextConfig config = TinyConfig();
    config.hidden_size = 32;
    config.num_heads = 2;
    config.num_kv_heads = 1;
    config.layers = {LayerKind::kLightning, LayerKind::kSoftmax};
    WriteTinyModel(model_.path(), config);
    alone_ = LoadEngine(1);
  }

  // Submits, cancels and restarts; ends with a failure where a text differs.
  void Run(int num_requests) {
    Restart();
    for (int i = 0; i < num_requests && !testing::Test::HasFatalFailure(); ++i) {
      while (flying_.size() >= 1 + Pick(10)) Land();
      if (Pick(97) == 0) Restart();
      SubmitOne();
      if (Pick(8) == 0) CancelOne();
    }
    while (!flying_.empty() && !testing::Test::HasFatalFailure()) Land();
    service_->Drain(600);
    CheckHeld();
    Count();
    CheckCached();
  }

  int64_t cached() const { return cached_; }
  int64_t evicted() const { return evicted_; }
  int64_t cancelled() const { return cancelled_; }

 private:
  struct Flight {
    Request request;  // without what cannot be copied
    std::shared_ptr<Client> client;
    Service::Id id;
    bool cancelled = false;
  };
  static constexpr int64_t kSlots = 3, kContext = 320;

  uint64_t Pick(uint64_t n) { return RandomBits(seed_, 1, draws_++) % n; }
  int64_t PickUpTo(int64_t n) { return static_cast<int64_t>(Pick(static_cast<uint64_t>(n) + 1)); }

  std::unique_ptr<Engine> LoadEngine(int64_t sequences) {
    return Engine::Load(model_.path(), {.num_threads = 1,
                                        .context_tokens = kContext,
                                        .num_sequences = sequences,
                                        .memory_limit_bytes = 1ll << 30})
        .value();
  }

  // What was in flight is cancelled. Now and then in a fresh folder, or in none.
  void Restart() {
    if (service_) {
      if (Pick(2) == 0) service_->Drain(0);
      Count();
      service_.reset();
      while (!flying_.empty()) {
        flying_.front().cancelled = true;
        Land();
      }
    }
    auto engine = LoadEngine(kSlots);
    const int64_t border = engine->state().border_bytes(), page = engine->state().page_bytes();
    options_ = {.max_queue = 100,
                .step_rows = 64 * static_cast<int64_t>(1 + Pick(4)),
                .snapshot_every = 64 * static_cast<int64_t>(1 + Pick(3)),
                .snapshot_bytes = static_cast<int64_t>(Pick(40)) * (border + 2 * page),
                .snapshot_dir = Pick(4) == 0 ? "" : files_ / "snapshots",
                .snapshot_disk_bytes = static_cast<int64_t>(Pick(80)) * (border + 2 * page)};
    service_ = Service::Start(std::move(engine), options_).value();
  }

  Request Draw() {
    Request r;
    // The beginning of one of a few texts, perhaps edited, perhaps with another end.
    r.prompt = TinyTokens(1 + PickUpTo(kContext - 100), 96, 10 + Pick(3));
    if (Pick(3) == 0) r.prompt[Pick(r.prompt.size())] = static_cast<int32_t>(Pick(96));
    for (int64_t i = PickUpTo(10); i > 0; --i) r.prompt.push_back(static_cast<int32_t>(Pick(5)));
    if (!written_.empty() && Pick(3) == 0) {  // a conversation goes on
      r.prompt = written_[Pick(written_.size())];
      r.prompt.resize(std::min<size_t>(r.prompt.size(), kContext - 60));
      for (int64_t i = PickUpTo(30); i >= 0; --i) r.prompt.push_back(static_cast<int32_t>(Pick(9)));
    }
    const auto length = static_cast<int64_t>(r.prompt.size());
    if (Pick(2) == 0) r.borders = {PickUpTo(length / 2), length / 2};
    r.generate.sampling = {.temperature = Pick(3) == 0 ? 0.0 : 1.2,
                           .top_p = Pick(2) == 0 ? 0.9 : 1.0,
                           .repetition_penalty = Pick(4) == 0 ? 1.2 : 1.0,
                           .seed = Pick(4)};
    r.generate.max_tokens = 1 + PickUpTo(Pick(5) == 0 ? 40 : 6);
    r.priority = static_cast<int>(Pick(2));
    r.salt = Pick(2) == 0 ? "a" : "b";
    return r;
  }

  void SubmitOne() {
    Flight flight{.request = Draw(), .client = std::make_shared<Client>(), .id = 0};
    Request request;
    request.prompt = flight.request.prompt;
    request.borders = flight.request.borders;
    request.generate = flight.request.generate;
    request.priority = flight.request.priority;
    request.salt = flight.request.salt;
    flight.id = service_->Submit(std::move(request), flight.client).value();
    flying_.push_back(std::move(flight));
  }

  void CancelOne() {
    Flight& flight = flying_[Pick(flying_.size())];
    if (Pick(2) == 0) flight.client->WaitForTokens(1 + Pick(5));
    flight.cancelled = true;
    service_->Cancel(flight.id);
  }

  std::vector<int32_t> Alone(const Request& r) {
    Session session = Session::Open(*alone_).value();
    Check(session.Read(r.prompt).ok(), "the prompt fits");
    return Generate(session, r.generate).value().tokens;
  }

  void Land() {
    const Flight flight = std::move(flying_.front());
    flying_.pop_front();
    const Heard heard = flight.client->Wait();
    ASSERT_TRUE(heard.done) << heard.failed->message();
    ASSERT_TRUE(heard.in_order);
    ASSERT_EQ(heard.ends, 1);
    std::vector<int32_t> alone = Alone(flight.request);
    if (heard.done->finish == Finish::kCancelled) {
      ASSERT_TRUE(flight.cancelled);
      ASSERT_LE(heard.tokens.size(), alone.size());
      alone.resize(heard.tokens.size());
      ++cancelled_;
    }
    ASSERT_EQ(heard.tokens, alone);
    Remember(flight.request, heard);
  }

  // The texts of a salt, by their beginnings in whole blocks.
  void Remember(const Request& request, const Heard& heard) {
    std::vector<int32_t> text = request.prompt;
    text.insert(text.end(), heard.tokens.begin(), heard.tokens.end());
    std::string name = request.salt;
    const int64_t cached = heard.done->usage.cached_tokens;
    ASSERT_LT(cached, std::ssize(request.prompt));
    ASSERT_EQ(cached % 64, 0);
    for (size_t i = 0; i < text.size(); ++i) {
      name += static_cast<char>(text[i]);
      if ((i + 1) % 64 == 0) ++beginnings_[name];
      if (static_cast<int64_t>(i) + 1 == cached) taken_.push_back(name);
    }
    cached_ += cached;
    if (written_.size() < 64) written_.emplace_back();
    written_[Pick(written_.size())] = std::move(text);
  }

  // Whatever was not read again had been read for another request of the same salt.
  void CheckCached() const {
    for (const std::string& name : taken_) ASSERT_GE(beginnings_.at(name), 2);
  }

  void Count() { evicted_ += service_->stats().snapshots_evicted; }
  void CheckHeld() const {
    const ServiceStats stats = service_->stats();
    EXPECT_EQ(stats.slots_used, 0);
    EXPECT_EQ(stats.pages_used, 0);
    EXPECT_EQ(stats.queued + stats.running, 0);
    EXPECT_LE(stats.snapshot_bytes, options_.snapshot_bytes);
    EXPECT_LE(stats.snapshot_disk_bytes, options_.snapshot_disk_bytes);
    EXPECT_EQ(stats.snapshots_damaged, 0);
    EXPECT_EQ(stats.submitted, stats.done + stats.cancelled);
  }

  const uint64_t seed_;
  uint64_t draws_ = 0;
  TempFolder model_, files_;
  std::unique_ptr<Engine> alone_;
  ServiceOptions options_;
  std::unique_ptr<Service> service_;
  std::deque<Flight> flying_;
  std::vector<std::vector<int32_t>> written_;
  std::map<std::string, int> beginnings_;
  std::vector<std::string> taken_;
  int64_t cached_ = 0, evicted_ = 0, cancelled_ = 0;
};

TEST(ServiceRandomTest, EachWritesWhatItWritesAlone) {
  RandomRequests requests(1);
  requests.Run(300);
  EXPECT_GT(requests.cached(), 64 * 50);
  EXPECT_GT(requests.evicted(), 10);
}

TEST(ServiceRandomSlow, EachOfTenThousandWritesWhatItWritesAlone) {
  RandomRequests requests(2);
  requests.Run(10'000);
  EXPECT_GT(requests.cancelled(), 100);
}

}  // namespace
}  // namespace mm01::infer
