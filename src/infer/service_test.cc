#include "infer/service.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <future>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "testing/service_client.h"
#include "testing/tiny_model.h"

namespace mm01::infer {
namespace {

class ServiceTest : public testing::Test {
 protected:
  ServiceTest() {
    TextConfig config = TinyConfig();
    config.vocab_size = 300;
    config.eos_ids = {257};
    WriteTinyModel(folder_.path(), config);
    WriteTinyTokenizer(folder_.path());
  }

  std::unique_ptr<Engine> LoadEngine(int64_t sequences, int64_t context = 512) {
    return Engine::Load(folder_.path(), {.num_threads = 1,
                                         .context_tokens = context,
                                         .num_sequences = sequences,
                                         .memory_limit_bytes = 1ll << 30})
        .value();
  }
  void StartService(int64_t sequences, ServiceOptions options = {}) {
    service_.reset();
    service_ = Service::Start(LoadEngine(sequences), std::move(options)).value();
  }

  static Request Ask(int64_t prompt_tokens, uint64_t seed, int64_t max_tokens = 12) {
    Request request;
    request.prompt = TinyTokens(prompt_tokens, 258, seed);
    request.generate.sampling = {.temperature = 1.5, .top_k = 40, .seed = seed};
    request.generate.max_tokens = max_tokens;
    return request;
  }
  static Request Copy(const Request& r) {
    Request copy;
    copy.prompt = r.prompt;
    copy.borders = r.borders;
    copy.generate = r.generate;
    copy.choice = r.choice;
    copy.logit_bias = r.logit_bias;
    copy.presence_penalty = r.presence_penalty;
    copy.frequency_penalty = r.frequency_penalty;
    copy.top_logprobs = r.top_logprobs;
    copy.prompt_logprobs = r.prompt_logprobs;
    copy.priority = r.priority;
    copy.salt = r.salt;
    return copy;
  }

  std::shared_ptr<Client> Submit(Request request, Service::Id* id = nullptr) {
    auto client = std::make_shared<Client>();
    const Result<Service::Id> result = service_->Submit(std::move(request), client);
    Check(result.ok(), result.status().message());
    if (id) *id = *result;
    return client;
  }
  Heard Run(Request request) { return Submit(std::move(request))->Wait(); }
  // Beside a request that writes a token in each step: how many, until the prompt has been read.
  std::pair<Heard, size_t> RunBesideAWriter(Request request) {
    Request endless = Ask(20, 1, 200);
    endless.generate.ignore_end = true;
    const auto writer = std::make_shared<Client>(), client = std::make_shared<Client>();
    // The engine's thread may still be in a listener's last call when Wait returns.
    struct Counts {
      size_t written = 0, at_start = 0, at_end = 0;
    };
    const auto counts = std::make_shared<Counts>();
    writer->on_event = [counts](const Event& event) {
      counts->written += std::holds_alternative<Wrote>(event);
    };
    client->on_event = [counts](const Event& event) {
      if (std::holds_alternative<Reading>(event) && counts->at_start == 0) {
        counts->at_start = counts->written;
      }
      if (std::holds_alternative<PromptRead>(event)) counts->at_end = counts->written;
    };
    const Service::Id id = *service_->Submit(std::move(endless), writer);
    writer->WaitForTokens(2);
    Check(service_->Submit(std::move(request), client).ok(), "the request fits");
    const Heard heard = client->Wait();
    service_->Cancel(id);
    writer->Wait();
    return {heard, counts->at_end - counts->at_start};
  }
  // By a session, which serves nobody else.
  GenerateResult Alone(const Request& request) {
    if (!alone_) alone_ = LoadEngine(1, 2048);
    Session session = Session::Open(*alone_).value();
    Check(session.Read(request.prompt).ok(), "the prompt fits");
    return Generate(session, request.generate).value();
  }

  // Once nothing runs.
  void ExpectNothingHeld() {
    service_->Drain(60);
    const ServiceStats stats = service_->stats();
    EXPECT_EQ(stats.queued, 0);
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.slots_used, 0);
    EXPECT_EQ(stats.pages_used, 0);
    EXPECT_EQ(stats.submitted, stats.done + stats.failed + stats.cancelled);
  }

  TempFolder folder_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<Engine> alone_;
};

TEST_F(ServiceTest, ManyAtOnceWriteWhatEachWritesAlone) {
  StartService(3, {.step_rows = 128});
  std::vector<Request> asked;
  std::vector<std::shared_ptr<Client>> clients;
  for (const int64_t length : {1, 63, 64, 65, 128, 200, 3, 130, 257}) {
    asked.push_back(Ask(length, static_cast<uint64_t>(length), 10 + length % 7));
    clients.push_back(Submit(Copy(asked.back())));
  }
  for (size_t i = 0; i < asked.size(); ++i) {
    const Heard heard = clients[i]->Wait();
    const GenerateResult alone = Alone(asked[i]);
    ASSERT_TRUE(heard.done.has_value());
    EXPECT_EQ(heard.tokens, alone.tokens);
    EXPECT_EQ(heard.text, alone.text);
    EXPECT_EQ(heard.done->finish, alone.finish);
    EXPECT_TRUE(heard.in_order);
    EXPECT_EQ(heard.prompt_reads, 1);
    EXPECT_EQ(heard.ends, 1);
    EXPECT_EQ(heard.done->usage.prompt_tokens, std::ssize(asked[i].prompt));
    EXPECT_EQ(heard.done->usage.completion_tokens, std::ssize(alone.tokens));
  }
  ExpectNothingHeld();
}

TEST_F(ServiceTest, StopStringsAndEndTokensEndATextAsTheyDoAlone) {
  StartService(2);
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Request request = Ask(20, seed, 60);
    request.generate.sampling.top_k = 0;
    request.generate.stop = {"e", "\n\n", "ab"};
    request.generate.ignore_end = seed % 2 == 0;
    request.logit_bias = {};
    const GenerateResult alone = Alone(request);
    const Heard heard = Run(std::move(request));
    EXPECT_EQ(heard.text, alone.text);
    EXPECT_EQ(heard.tokens, alone.tokens);
    EXPECT_EQ(heard.done->finish, alone.finish);
  }
}

TEST_F(ServiceTest, ARepeatedPromptIsReadFromItsLastBorderAndWritesTheSame) {
  StartService(2);
  const Request request = Ask(300, 5);
  const Heard first = Run(Copy(request)), second = Run(Copy(request));
  EXPECT_EQ(first.done->usage.cached_tokens, 0);
  EXPECT_EQ(second.done->usage.cached_tokens, 256);
  EXPECT_EQ(first.tokens, second.tokens);
  EXPECT_EQ(first.tokens, Alone(request).tokens);
  EXPECT_EQ(service_->stats().read_tokens, 300 + 44);
  EXPECT_EQ(service_->stats().cached_tokens, 256);
  EXPECT_EQ(service_->stats().snapshots_hit, 1);
}

TEST_F(ServiceTest, APromptOfWholeBlocksLeavesItsLastBlockToTheRepetition) {
  StartService(1);
  Run(Ask(128, 5));
  EXPECT_EQ(Run(Ask(128, 5)).done->usage.cached_tokens, 64);
}

TEST_F(ServiceTest, AGoneOnConversationIsReadFromTheEndOfTheLastTurn) {
  StartService(1);
  Request first = Ask(100, 5, 40);
  first.generate.ignore_end = true;
  Request second = Copy(first);
  const Heard heard = Run(std::move(first));
  second.prompt.insert(second.prompt.end(), heard.tokens.begin(), heard.tokens.end());
  const std::vector<int32_t> question = TinyTokens(20, 258, 9);
  second.prompt.insert(second.prompt.end(), question.begin(), question.end());
  const GenerateResult alone = Alone(second);
  const Heard next = Run(std::move(second));
  EXPECT_EQ(next.done->usage.cached_tokens, 128) << "100 and 39 tokens were read";
  EXPECT_EQ(next.tokens, alone.tokens);
}

TEST_F(ServiceTest, AnEditResumesAtTheLastSnapshotBeforeIt) {
  StartService(1, {.snapshot_every = 128});
  Request request = Ask(500, 5);
  Run(Copy(request));
  request.prompt[400] ^= 1;
  const Heard edited = Run(Copy(request));
  EXPECT_EQ(edited.done->usage.cached_tokens, 384);
  EXPECT_EQ(edited.tokens, Alone(request).tokens);
  request.prompt[200] ^= 1;
  EXPECT_EQ(Run(Copy(request)).done->usage.cached_tokens, 128);
  EXPECT_EQ(Run(Copy(request)).done->usage.cached_tokens, 448);
}

TEST_F(ServiceTest, BordersOfARequestAreWhereALaterPromptParts) {
  StartService(1);
  Request request = Ask(500, 5);
  request.borders = {70, 410, 500};
  Run(Copy(request));
  request.prompt.resize(420);
  request.prompt.resize(500, 7);
  EXPECT_EQ(Run(Copy(request)).done->usage.cached_tokens, 384);
  request.prompt[100] ^= 1;
  EXPECT_EQ(Run(Copy(request)).done->usage.cached_tokens, 64) << "and at 70";
}

TEST_F(ServiceTest, WhereTwoPromptsPartedTheThirdBegins) {
  StartService(1);
  const std::vector<int64_t> wanted = {0, 0, 320, 320};
  for (uint64_t i = 0; i < wanted.size(); ++i) {
    Request request = Ask(330, 5);
    const std::vector<int32_t> question = TinyTokens(100, 258, 100 + i);
    request.prompt.insert(request.prompt.end(), question.begin(), question.end());
    EXPECT_EQ(Run(std::move(request)).done->usage.cached_tokens, wanted[i]);
  }
}

TEST_F(ServiceTest, SaltSeparates) {
  StartService(1);
  const Request request = Ask(300, 5);
  for (const char* salt : {"a", "b", ""}) {
    Request salted = Copy(request);
    salted.salt = salt;
    EXPECT_EQ(Run(std::move(salted)).done->usage.cached_tokens, 0);
  }
  EXPECT_EQ(Run(Copy(request)).done->usage.cached_tokens, 256);
}

TEST_F(ServiceTest, ChoicesOfOnePromptReadItOnceAndDiffer) {
  StartService(4);
  std::vector<std::shared_ptr<Client>> clients;
  for (uint64_t choice = 0; choice < 4; ++choice) {
    Request request = Ask(450, 5, 30);
    request.choice = choice;
    clients.push_back(Submit(std::move(request)));
  }
  std::vector<std::vector<int32_t>> texts;
  for (const auto& client : clients) texts.push_back(client->Wait().tokens);
  EXPECT_NE(texts[0], texts[1]);
  EXPECT_NE(texts[1], texts[2]);
  EXPECT_EQ(service_->stats().read_tokens, 450 + 3 * 2);
}

TEST_F(ServiceTest, ACancelledPromptIsKeptUpToItsLastBorder) {
  StartService(1, {.step_rows = 64});
  const Request request = Ask(500, 5);
  const auto client = std::make_shared<Client>();
  client->Hold();  // before its first step
  const Service::Id id = *service_->Submit(Copy(request), client);
  client->WaitForStart();
  service_->Cancel(id);
  client->Release();
  EXPECT_EQ(client->Wait().done->finish, Finish::kCancelled);
  EXPECT_EQ(service_->stats().read_tokens, 64) << "it ends within one step";
  const Heard again = Run(Copy(request));
  EXPECT_EQ(again.done->usage.cached_tokens, 64);
  EXPECT_EQ(service_->stats().read_tokens, 500) << "nothing was read twice";
  EXPECT_EQ(again.tokens, Alone(request).tokens);
}

TEST_F(ServiceTest, CancelInEveryPhaseFreesWhatWasHeld) {
  StartService(2, {.step_rows = 64});
  std::vector<std::shared_ptr<Client>> clients;
  std::vector<Service::Id> ids;
  for (uint64_t i = 0; i < 40; ++i) {
    Request request = Ask(1 + static_cast<int64_t>(i) * 9, i, 50);
    request.generate.ignore_end = true;
    clients.push_back(Submit(std::move(request), &ids.emplace_back()));
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i % 4 == 0) continue;
    if (i % 4 == 2) clients[i - 2]->WaitForTokens(i);
    service_->Cancel(ids[i]);
    service_->Cancel(ids[i]);
  }
  service_->Cancel(123456789);
  for (size_t i = 0; i < ids.size(); ++i) {
    const Heard heard = clients[i]->Wait();
    ASSERT_TRUE(heard.done.has_value());
    if (i % 4 == 0) {
      EXPECT_EQ(heard.tokens.size(), 50u) << "others are not disturbed";
    }
  }
  ExpectNothingHeld();
  for (const auto& client : clients) EXPECT_EQ(client->Wait().ends, 1);
}

TEST_F(ServiceTest, ARequestThatCannotBeServedIsRefusedWithTheReason) {
  StartService(1, {.max_queue = 0});
  const auto refusal = [&](Request request) {
    const auto result = service_->Submit(std::move(request), std::make_shared<Client>());
    return result.ok() ? Status::Ok() : result.status();
  };
  EXPECT_EQ(refusal({}).message(), "the prompt has no tokens, wanted 1 or more");
  Request request = Ask(5, 1);
  request.prompt[2] = 300;
  EXPECT_EQ(refusal(Copy(request)).message(), "a token of the prompt is 300, wanted 0 to 299");
  request = Ask(5, 1);
  request.generate.max_tokens = -1;
  EXPECT_EQ(refusal(Copy(request)).message(), "max_tokens is -1, wanted 0 or more");
  request = Ask(5, 1, std::numeric_limits<int64_t>::max());
  EXPECT_EQ(refusal(Copy(request)).code(), Code::kTooLarge);
  request = Ask(5, 1);
  request.generate.sampling.top_p = 2;
  EXPECT_EQ(refusal(Copy(request)).code(), Code::kInvalid);
  request = Ask(5, 1);
  request.logit_bias = {{1, std::numeric_limits<float>::quiet_NaN()}};
  EXPECT_EQ(refusal(Copy(request)).message(), "a value of logit_bias is not finite");
  request.logit_bias = {{-1, 0.f}};
  EXPECT_EQ(refusal(Copy(request)).message(), "a token of logit_bias is -1, wanted 0 to 299");
  request = Ask(5, 1);
  request.borders = {3, 6};
  EXPECT_EQ(refusal(Copy(request)).message(),
            "a border is 6, wanted 3 to 5: they ascend within the prompt");
  const Status full = refusal(Ask(5, 1));
  EXPECT_EQ(full.code(), Code::kTooLarge);
  EXPECT_EQ(full.message(), "the queue is full: 0 requests wait, at most 0 may");
  EXPECT_EQ(service_->stats().refused, 9);
  EXPECT_EQ(service_->stats().submitted, 0);
}

// A page in each step, here.
TEST_F(ServiceTest, OthersWriteOnWhileASnapshotIsCopiedIntoItsSlot) {
  StartService(2, {.restore_bytes = 1});
  const Request request = Ask(500, 5);
  const Heard first = Run(Copy(request));
  const auto [second, steps] = RunBesideAWriter(Copy(request));
  EXPECT_EQ(second.done->usage.cached_tokens, 448);
  EXPECT_EQ(second.tokens, first.tokens);
  EXPECT_GE(steps, 448u / 64);
  ExpectNothingHeld();
}

TEST_F(ServiceTest, WhileOthersWriteAPromptIsReadInChunksOfEqualWork) {
  StartService(2, {.step_rows = 257});
  const Request request = Ask(500, 5);
  const auto [heard, steps] = RunBesideAWriter(Copy(request));
  EXPECT_GE(steps, 3u) << "chunks of 256 would take two";
  EXPECT_EQ(heard.tokens, Alone(request).tokens);
}

TEST_F(ServiceTest, ARequestMayGoWhileItsSnapshotIsCopied) {
  StartService(1, {.restore_bytes = 1});
  const Request request = Ask(500, 5);
  Run(Copy(request));
  const auto client = std::make_shared<Client>();
  client->Hold();
  const Service::Id id = *service_->Submit(Copy(request), client);
  client->WaitForStart();
  service_->Cancel(id);
  client->Release();
  EXPECT_EQ(client->Wait().done->finish, Finish::kCancelled);
  EXPECT_EQ(Run(Copy(request)).tokens, Alone(request).tokens);
  ExpectNothingHeld();
}

TEST_F(ServiceTest, LogprobsAreThoseOfTheModel) {
  StartService(1);
  Request request = Ask(40, 3, 5);
  request.prompt_logprobs = true;
  request.top_logprobs = 3;
  request.logit_bias = {{7, 3.f}};
  Run(Ask(40, 3, 5));
  const Heard heard = Run(Copy(request));
  const auto engine = LoadEngine(1);
  Session session = Session::Open(*engine).value();
  ASSERT_EQ(heard.prompt.size(), 39u);
  std::vector<int32_t> text = request.prompt;
  text.insert(text.end(), heard.tokens.begin(), heard.tokens.end());
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    ASSERT_TRUE(session.Read({&text[i], 1}).ok());
    const TokenInfo& info = i + 1 < 40 ? heard.prompt[i] : heard.infos[i - 39];
    EXPECT_EQ(info.token, text[i + 1]);
    EXPECT_EQ(info.logprob,
              static_cast<double>(session.logits()[static_cast<size_t>(text[i + 1])]) -
                  LogSumExp(session.logits()));
    EXPECT_EQ(info.top, TopLogprobs(session.logits(), 3));
  }
  EXPECT_EQ(heard.done->usage.cached_tokens, 0) << "every row of the prompt is needed";
}

TEST_F(ServiceTest, NoTokensToWriteIsAPromptRead) {
  StartService(1);
  Request request = Ask(40, 3, 0);
  request.prompt_logprobs = true;
  const Heard heard = Run(std::move(request));
  EXPECT_EQ(heard.prompt.size(), 39u);
  EXPECT_TRUE(heard.tokens.empty());
  EXPECT_EQ(heard.done->finish, Finish::kLength);
}

TEST_F(ServiceTest, BiasAndPenaltiesChangeWhatIsDrawn) {
  StartService(1);
  Request request = Ask(10, 3, 20);
  request.generate.sampling.temperature = 0;
  request.generate.ignore_end = true;
  request.logit_bias = {{5, 1000.f}};
  EXPECT_EQ(Run(Copy(request)).tokens, std::vector<int32_t>(20, 5));
  request.presence_penalty = 2000;  // once written, far below the others
  const std::vector<int32_t> once = Run(Copy(request)).tokens;
  EXPECT_EQ(std::ranges::count(once, 5), 1);
  request.presence_penalty = 0;
  request.frequency_penalty = 400;  // 1000, 600, 200 and then -200
  const std::vector<int32_t> thrice = Run(Copy(request)).tokens;
  EXPECT_EQ(std::ranges::count(thrice, 5), 3);
}

// Even tokens only; or throws.
class TestFilter : public TokenFilter {
 public:
  explicit TestFilter(bool broken) : broken_(broken) {}
  void Mask(std::span<float> logits) override {
    if (broken_) throw std::runtime_error("this filter is broken");
    for (size_t i = 1; i < logits.size(); i += 2) {
      logits[i] = -std::numeric_limits<float>::infinity();
    }
  }
  void Accept(int32_t token) override { EXPECT_EQ(token % 2, 0); }

 private:
  bool broken_;
};

TEST_F(ServiceTest, AFilterSaysWhatMayComeAndABrokenOneFailsItsRequestAlone) {
  StartService(3);
  Request even = Ask(10, 3, 20), broken = Ask(20, 4, 20), plain = Ask(30, 5, 20);
  even.filter = std::make_unique<TestFilter>(false);
  broken.filter = std::make_unique<TestFilter>(true);
  const auto a = Submit(std::move(even)), b = Submit(std::move(broken)), c = Submit(Copy(plain));
  for (const int32_t token : a->Wait().tokens) EXPECT_EQ(token % 2, 0);
  ASSERT_TRUE(b->Wait().failed.has_value());
  EXPECT_EQ(b->Wait().failed->message(), "this filter is broken");
  EXPECT_EQ(c->Wait().tokens, Alone(plain).tokens);
  ExpectNothingHeld();
}

TEST_F(ServiceTest, AMaskThatTakesLongHoldsUpNobodyElse) {
  class SlowFilter final : public TokenFilter {
   public:
    explicit SlowFilter(std::shared_future<void> released) : released_(std::move(released)) {}
    void Mask(std::span<float> logits) override {
      released_.wait();
      for (size_t i = 1; i < logits.size(); i += 2) logits[i] = -INFINITY;
    }
    void Accept(int32_t) override {}

   private:
    std::shared_future<void> released_;
  };
  StartService(2);
  std::promise<void> release;
  Request slow = Ask(100, 3, 20), plain = Ask(150, 4, 20);
  slow.filter = std::make_unique<SlowFilter>(release.get_future().share());
  const auto waits = Submit(std::move(slow));
  EXPECT_EQ(Run(Copy(plain)).tokens, Alone(plain).tokens);
  release.set_value();
  const Heard heard = waits->Wait();
  EXPECT_TRUE(heard.done.has_value());
  for (const int32_t token : heard.tokens) EXPECT_EQ(token % 2, 0);
  ExpectNothingHeld();
}

// A norm in the middle of the model has lost its weights for one step, as its op finds: by then the
// layers before it have moved the states of all in the batch.
TEST_F(ServiceTest, AnOpThatThrowsEndsItsBatchAloneAndTheServiceGoesOn) {
  auto engine = LoadEngine(3);
  Parameters& norm = const_cast<TextWeights&>(engine->weights()).layers[1].mlp_norm;
  service_ = Service::Start(std::move(engine), {}).value();
  const Request earlier = Ask(200, 1, 5), waiting = Ask(150, 2, 20);
  EXPECT_EQ(Run(Copy(earlier)).tokens, Alone(earlier).tokens);

  // Touched on the engine's thread alone.
  Parameters taken;
  std::vector<int> written(3);
  std::vector<std::shared_ptr<Client>> batch;
  for (size_t i = 0; i < written.size(); ++i) {
    const auto client = batch.emplace_back(std::make_shared<Client>());
    client->on_event = [&, i](const Event& event) {
      const bool wrote = std::holds_alternative<Wrote>(event);
      written[i] += wrote ? 1 : 0;
      const bool breaks = i == 0 && wrote && taken.values().empty() &&
                          *std::min_element(written.begin(), written.end()) > 0;
      const bool mends = i == 0 && std::holds_alternative<Failed>(event);
      if (breaks || mends) std::swap(norm, taken);
    };
    Request endless = Ask(static_cast<int64_t>(100 + 50 * i), 10 + i, 300);
    endless.generate.ignore_end = true;
    ASSERT_TRUE(service_->Submit(std::move(endless), client).ok());
  }
  const auto queued = Submit(Copy(waiting));
  for (const auto& client : batch) {
    const Heard heard = client->Wait();
    ASSERT_TRUE(heard.failed.has_value());
    EXPECT_EQ(heard.failed->code(), Code::kIo);
    EXPECT_EQ(heard.ends, 1);
  }
  EXPECT_EQ(queued->Wait().tokens, Alone(waiting).tokens);
  const Heard again = Run(Copy(earlier));
  EXPECT_EQ(again.tokens, Alone(earlier).tokens);
  EXPECT_GT(again.done->usage.cached_tokens, 0);
  EXPECT_EQ(service_->stats().failed, 3);
  ExpectNothingHeld();
}

TEST_F(ServiceTest, DrainTakesNothingNewAndEndsWhatRuns) {
  StartService(1);
  const auto client = Submit(Ask(100, 1, 30));
  service_->Drain(60);
  EXPECT_NE(client->Wait().done->finish, Finish::kCancelled);
  const auto late = service_->Submit(Ask(5, 1), std::make_shared<Client>());
  EXPECT_EQ(late.status().code(), Code::kCancelled);

  StartService(1);
  Request endless = Ask(100, 1, 400);
  endless.generate.ignore_end = true;
  const auto waits = Submit(Copy(endless)), queued = Submit(Copy(endless));
  service_->Drain(0);
  EXPECT_EQ(queued->Wait().done->finish, Finish::kCancelled);
  EXPECT_EQ(waits->Wait().ends, 1);
  ExpectNothingHeld();
}

TEST_F(ServiceTest, EndingTheServiceEndsItsRequests) {
  StartService(1);
  const auto client = Submit(Ask(400, 1, 100)), other = Submit(Ask(400, 2, 100));
  service_.reset();
  EXPECT_EQ(client->Wait().ends, 1);
  EXPECT_EQ(other->Wait().done->finish, Finish::kCancelled);
}

TEST_F(ServiceTest, PriorityGoesFirstAndSaltsShare) {
  StartService(1);
  const auto first = std::make_shared<Client>();
  first->Hold();
  ASSERT_TRUE(service_->Submit(Ask(10, 1), first).ok());
  first->WaitForStart();
  std::string order;
  std::vector<std::shared_ptr<Client>> clients;
  const auto submit = [&](char name, const char* salt, int priority) {
    Request request = Ask(10, 1, 2);
    request.salt = salt;
    request.priority = priority;
    clients.push_back(std::make_shared<Client>());
    clients.back()->on_event = [&order, name](const Event& event) {
      if (std::holds_alternative<PromptRead>(event)) order += name;
    };
    ASSERT_TRUE(service_->Submit(std::move(request), clients.back()).ok());
  };
  for (const char name : {'a', 'b', 'c'}) submit(name, "many", 0);
  submit('x', "few", 0);
  submit('P', "many", 1);
  first->Release();
  for (const auto& client : clients) client->Wait();
  EXPECT_EQ(order, "Paxbc");
}

}  // namespace
}  // namespace mm01::infer
