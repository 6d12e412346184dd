// The program as its users meet it: the built binary, its output, its exit codes.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

const fs::path kRoot = MM01_SOURCE_DIR;
const fs::path kTiny = kRoot / "tests/goldens/text-tiny";

std::string ReadText(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteText(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string Utf8(int code_point) {
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

// Byte-level BPE without merges: three special tokens, and bytes from id 3 on.
Json ByteTokenizer() {
  Json added = Json::array(), vocab = Json::object();
  for (const char* name : {"<pad>", "<bos>", "<eos>"}) {
    added.push_back({{"id", added.size()},
                     {"content", name},
                     {"special", true},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false}});
  }
  int other = 256;  // bytes that are no letter are spelled by code points from here on
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_letter = (33 <= byte && byte <= 126) || (161 <= byte && byte != 173);
    vocab[Utf8(is_letter ? byte : other++)] = 3 + byte;
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
}

struct Outcome {
  int exit_code = 0;
  std::string out, err;
};

class CliTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) / (std::string("mm01_cli_") + info->name());
    fs::remove_all(folder_);
    MakeModel("model", ByteTokenizer());
  }
  void TearDown() override { fs::remove_all(folder_); }

  void MakeModel(const std::string& name, const Json& tokenizer) {
    fs::create_directories(folder_ / name);
    fs::copy_file(kTiny / "config.json", folder_ / name / "config.json");
    fs::copy_file(kTiny / "model.safetensors", folder_ / name / "model.safetensors");
    WriteText(folder_ / name / "tokenizer.json", tokenizer.dump());
  }

  // `arguments` as a shell reads them, run in the test's folder, where "model" is.
  Outcome Run(const std::string& arguments, const std::string& input = "",
              const std::string& environment = "") {
    WriteText(folder_ / "in", input);
    const std::string command = "cd '" + folder_.string() + "' && env -i " + environment + " '" +
                                MM01_BINARY + "' " + arguments + " <in >out 2>err";
    const int status = std::system(command.c_str());
    EXPECT_TRUE(WIFEXITED(status)) << command;
    return {WEXITSTATUS(status), ReadText(folder_ / "out"), ReadText(folder_ / "err")};
  }
  Json RunJson(const std::string& arguments, const std::string& input = "") {
    const Outcome got = Run(arguments + " --json --quiet --threads 1", input);
    EXPECT_EQ(got.exit_code, 0) << got.err;
    EXPECT_EQ(got.err, "");
    return Json::parse(got.out);
  }

  fs::path folder_;
};

const std::vector<std::string> kCommands = {"generate", "chat",  "perplexity", "inspect", "compare",
                                            "quantize", "state", "bench",      "data",    "train",
                                            "report",   "eval",  "completion", "serve"};

// tests/goldens/help/NAME.txt: the command in its first line, then what it prints.
TEST_F(CliTest, HelpIsAsItWas) {
  std::vector<std::string> names = kCommands;
  names.push_back("mm01");
  for (const std::string& name : names) {
    const std::string words = name == "mm01" ? "--help" : name + " --help";
    const Outcome got = Run(words);
    EXPECT_EQ(got.exit_code, 0);
    EXPECT_EQ("$ mm01 " + words + "\n" + got.out,
              ReadText(kRoot / "tests/goldens/help" / (name + ".txt")));
    EXPECT_EQ(got.err, "");
  }
}

TEST_F(CliTest, ServeSaysWhichChangeWouldFit) {
  const Outcome context = Run("serve model --context 4000000000");
  EXPECT_EQ(context.exit_code, 2);
  EXPECT_NE(context.err.find("longest context for 4 sequences: "), std::string::npos)
      << context.err;
  EXPECT_NE(context.err.find("; --context "), std::string::npos) << context.err;
  const Outcome snapshots = Run("serve model --context 64 --snapshot-memory 1000000000");
  EXPECT_EQ(snapshots.exit_code, 2);
  EXPECT_NE(snapshots.err.find("; --snapshot-memory "), std::string::npos) << snapshots.err;
  const Outcome open = Run("serve model --host 0.0.0.0");
  EXPECT_EQ(open.exit_code, 2);
  EXPECT_NE(open.err.find("without a key"), std::string::npos) << open.err;
}

struct BadCase {
  const char* arguments;
  const char* sentence;  // a part of it
};

TEST_F(CliTest, BadInputIsOneSentenceAndExitCode2) {
  fs::create_directories(folder_ / "pickled");
  fs::copy_file(kTiny / "config.json", folder_ / "pickled/config.json");
  WriteText(folder_ / "pickled/pytorch_model.bin", "x");
  WriteText(folder_ / "model.bin", "x");
  WriteText(folder_ / "text.xz", std::string("\xFD"
                                             "7zXZ\0\0\0",
                                             8));
  Json wrong = ByteTokenizer();
  wrong["model"]["type"] = "WordPiece";
  MakeModel("wordpiece", wrong);
  Json large = ByteTokenizer();
  large["model"]["vocab"]["ab"] = 300;
  MakeModel("large", large);
  const BadCase cases[] = {
      {"frobnicate", "'frobnicate' is no command, wanted one of generate, chat"},
      {"generate", "MODEL is missing; usage: mm01 generate MODEL [PROMPT] [flags]"},
      {"generate model a b", "'b' is one argument too many"},
      {"generate model a --frobnicate", "'--frobnicate' is no flag of this command"},
      {"generate model a --threads", "--threads has no value, wanted N"},
      {"generate model a --threads two",
       "--threads is 'two', wanted a whole number from 1 to 1024"},
      {"generate model a --threads 0", "--threads is '0', wanted a whole number from 1 to 1024"},
      {"generate model a --top-p 1.5", "--top-p is '1.5', wanted a number from"},
      {"generate model a --weights int4", "--weights is 'int4', wanted one of auto, float32"},
      {"generate model a --quiet=yes", "--quiet is given 'yes', wanted no value"},
      {"generate model a --prompt-file in", "PROMPT and --prompt-file are both given"},
      {"generate model a --resume", "--resume is given without --load-state"},
      {"generate model ''", "the prompt is empty"},
      {"generate model a --quiet --context 1000000000000", "are available"},
      {"generate model abc --quiet --context 2", "--context is 2, wanted 3 or more"},
      {"generate nowhere a", "nowhere"},
      {"generate model --prompt-file nowhere", "nowhere: cannot open"},
      {"generate pickled a", "pickled"},
      {"inspect model.bin", "models are read as data, never as code"},
      {"generate wordpiece a --quiet", "WordPiece"},
      {"generate large a --quiet", "the tokenizer has ids up to 300"},
      {"perplexity model text.xz", "text.xz: compressed by xz, wanted plain text"},
      {"perplexity model in", "in: its longest document has 0 tokens, wanted at least 2"},
      {"state model/model.safetensors", "is no saved state"},
      {"compare model nowhere", "nowhere"},
      {"quantize model model", "has 3 entries, wanted a new or empty folder"},
      {"data build in set", "--tokenizer is missing"},
      {"data bild in set", "ACTION is 'bild', wanted build or preview"},
      {"data build nowhere set --tokenizer model", "nowhere: cannot open"},
      {"data preview nowhere --tokenizer model", "nowhere/data.json: cannot open"},
      {"train nowhere.toml", "nowhere.toml: cannot open"},
      {"report nowhere", "nowhere/metrics.jsonl: cannot open"},
      {"eval noodle model", "TASK is 'noodle', wanted needle"},
      {"completion csh", "SHELL is 'csh', wanted one of bash, zsh, fish"},
  };
  for (const BadCase& c : cases) {
    SCOPED_TRACE(c.arguments);
    const Outcome got = Run(c.arguments);
    EXPECT_EQ(got.exit_code, 2);
    EXPECT_EQ(got.out, "");
    EXPECT_TRUE(got.err.starts_with("mm01: ")) << got.err;
    EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '\n'), 1) << got.err;
    EXPECT_NE(got.err.find(c.sentence), std::string::npos) << got.err;
  }
}

TEST_F(CliTest, TheEnvironmentSpeaksWhereTheCommandLineIsSilent) {
  const Outcome bad = Run("generate model a", "", "MM01_THREADS=x");
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_EQ(bad.err,
            "mm01: the environment variable MM01_THREADS is 'x', wanted a whole number from 1 to "
            "1024\n");
  const std::string few = "MM01_MAX_TOKENS=3 MM01_JSON=1 MM01_QUIET=1 MM01_GREEDY=1";
  const Outcome three = Run("generate model a --ignore-end", "", few);
  EXPECT_EQ(Json::parse(three.out)["tokens"].size(), 3u);
  const Outcome five = Run("generate model a --ignore-end --max-tokens 5", "", few);
  EXPECT_EQ(Json::parse(five.out)["tokens"].size(), 5u);
}

TEST_F(CliTest, APromptMayComeFromAPipeAFileOrTheCommandLine) {
  const std::string flags = "generate model --greedy --ignore-end --max-tokens 6";
  WriteText(folder_ / "prompt.txt", "Some text");
  const Json piped = RunJson(flags, "Some text");
  EXPECT_EQ(piped["prompt_tokens"], 9);
  EXPECT_EQ(piped["finish"], "length");
  EXPECT_EQ(piped["tokens"].size(), 6u);
  EXPECT_EQ(piped["tokens"], RunJson(flags + " 'Some text'")["tokens"]);
  EXPECT_EQ(piped["tokens"], RunJson(flags + " --prompt-file prompt.txt")["tokens"]);
  EXPECT_EQ(piped["tokens"], RunJson(flags + " --prompt-tokens 9 'Some text, and more'")["tokens"]);
}

TEST_F(CliTest, SpecialTokensAreTextUnlessAskedFor) {
  const std::string flags = "generate model '<bos>' --greedy --max-tokens 1";
  EXPECT_EQ(RunJson(flags)["prompt_tokens"], 5);
  EXPECT_EQ(RunJson(flags + " --special")["prompt_tokens"], 1);
}

TEST_F(CliTest, QuietSaysNothingButTheText) {
  const Outcome loud = Run("generate model abc --greedy --max-tokens 2");
  EXPECT_NE(loud.err.find("KV cache"), std::string::npos);
  EXPECT_EQ(Run("generate model abc --greedy --max-tokens 2 --quiet").err, "");
}

TEST_F(CliTest, ASavedStateGoesOnWithTheSameTokens) {
  const std::string flags = "generate model --seed 5 --temperature 1 --ignore-end --max-tokens ";
  const Json whole = RunJson(flags + "24 'A text to read'");
  const Json first = RunJson(flags + "10 'A text to read' --save-state half.state");
  const Json second = RunJson(flags + "14 --load-state half.state");
  Json both = first["tokens"];
  for (const Json& token : second["tokens"]) both.push_back(token);
  EXPECT_EQ(both, whole["tokens"]);
  EXPECT_EQ(second["prompt_tokens"], 0);

  const Outcome state = Run("state half.state --json");
  EXPECT_EQ(state.exit_code, 0) << state.err;
  EXPECT_EQ(Json::parse(state.out)["tokens"], 14 + 10);
}

TEST_F(CliTest, AReadingThatWasStoppedIsResumed) {
  const std::string flags = "generate model --greedy --ignore-end ";
  RunJson(flags + "'First half' --max-tokens 0 --save-state half.state");
  const Json resumed =
      RunJson(flags + "'First half, second half' --max-tokens 5 --load-state half.state --resume");
  EXPECT_EQ(resumed["prompt_tokens"], 13);
  EXPECT_EQ(resumed["tokens"],
            RunJson(flags + "'First half, second half' --max-tokens 5")["tokens"]);
  const Outcome other =
      Run(flags + "'Another text' --max-tokens 5 --load-state half.state --resume --quiet");
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_NE(other.err.find("part from those of the prompt after 0"), std::string::npos)
      << other.err;
}

TEST_F(CliTest, ADamagedStateIsRefused) {
  RunJson("generate model abc --max-tokens 1 --save-state a.state");
  std::string bytes = ReadText(folder_ / "a.state");
  bytes[bytes.size() / 2] ^= 1;
  WriteText(folder_ / "a.state", bytes);
  const Outcome got = Run("state a.state");
  EXPECT_EQ(got.exit_code, 2);
  EXPECT_NE(got.err.find("damaged"), std::string::npos) << got.err;
}

TEST_F(CliTest, InspectCountsTheParametersOfText01) {
  const std::string config = (kRoot / "tests/goldens/config/text-01.json").string();
  const Outcome got = Run("inspect '" + config + "'");
  EXPECT_EQ(got.exit_code, 0) << got.err;
  EXPECT_NE(got.out.find("456,089,655,296"), std::string::npos) << got.out;
  const Outcome json = Run("inspect --json '" + config + "' --context 1000");
  EXPECT_EQ(Json::parse(json.out)["parameters"]["total"], 456'089'655'296);
  EXPECT_EQ(Json::parse(json.out)["context_tokens"], 1000);
}

TEST_F(CliTest, InspectListsTheTensorsOfACheckpoint) {
  const Outcome got = Run("inspect model --tensors --json");
  const Json json = Json::parse(got.out);
  EXPECT_EQ(json["has_checkpoint"], true);
  EXPECT_EQ(json["tensors"].size(), json["num_tensors"]);
}

TEST_F(CliTest, CompareAgreesWithTheReference) {
  const std::string arguments =
      "compare model '" + (kTiny / "reference.safetensors").string() + "'";
  const Json report = RunJson(arguments);
  EXPECT_EQ(report["ok"], true) << report.dump(1);
  EXPECT_FALSE(report.contains("first_deviating"));

  const Outcome strict = Run(arguments + " --tolerance 0 --quiet");
  EXPECT_EQ(strict.exit_code, 1);
  EXPECT_NE(strict.out.find("first to deviate by more than 0: "), std::string::npos) << strict.out;
}

TEST_F(CliTest, AConvertedCheckpointIsTheSameModel) {
  const std::string reference = "'" + (kTiny / "reference.safetensors").string() + "'";
  const Outcome shards =
      Run("quantize model shards --weights float32 --shard-bytes 400000 --quiet");
  EXPECT_EQ(shards.exit_code, 0) << shards.err;
  EXPECT_TRUE(fs::exists(folder_ / "shards/model.safetensors.index.json"));
  EXPECT_EQ(RunJson("compare shards " + reference)["ok"], true);

  EXPECT_EQ(Run("quantize model int8 --group 32 --quiet").exit_code, 0);
  const Json inspected = Json::parse(Run("inspect int8 --json").out);
  EXPECT_LT(inspected["checkpoint_bytes"], fs::file_size(kTiny / "model.safetensors") / 2);
  const std::string text = " --greedy --ignore-end --max-tokens 4 'Some text'";
  EXPECT_EQ(RunJson("generate int8" + text)["tokens"],
            RunJson("generate int8 --weights int8" + text)["tokens"]);
}

TEST_F(CliTest, PerplexityReadsDocumentsApart) {
  const std::string two("Some text\0Another one", 21);
  const Json both = RunJson("perplexity model -", two);
  EXPECT_EQ(both["documents"], 2);
  EXPECT_EQ(both["tokens"], 8 + 10);
  const Json first = RunJson("perplexity model - --documents 1", two);
  const Json alone = RunJson("perplexity model -", "Some text");
  EXPECT_EQ(first["nats_per_token"], alone["nats_per_token"]);
  const Json cut = RunJson("perplexity model - --max-tokens-per-document 4", two);
  EXPECT_EQ(cut["tokens"], 3 + 3);
}

TEST_F(CliTest, ChatAnswersEveryLineAndObeysCommands) {
  const Outcome got =
      Run("chat model --greedy --max-tokens 3 --threads 1 --ignore-end",
          "Hello\\\nthere\n/stats\n/save a.chat\n\"\"\"\ntwo\nlines\n\"\"\"\n/load a.chat\n/retry\n"
          "/nonsense\n/exit\nnot read\n");
  EXPECT_EQ(got.exit_code, 0) << got.err;
  EXPECT_NE(got.err.find("brought no chat template"), std::string::npos) << got.err;
  EXPECT_NE(got.err.find("saved 2 messages"), std::string::npos) << got.err;
  EXPECT_NE(got.err.find("loaded 2 messages"), std::string::npos) << got.err;
  EXPECT_NE(got.err.find("/nonsense is no command"), std::string::npos) << got.err;
  EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '%'), 0) << got.err;
  EXPECT_TRUE(fs::exists(folder_ / "a.chat.json"));
}

std::string SmallRecipe() {
  return R"(name = "small"
tokenizer = "model"
pass_tokens = 64
[model]
pattern = "LS"
vocab = 259
hidden = 32
heads = 2
head_dim = 16
ffn = 16
experts = 2
[schedule]
learning_rate = 0.01
[[source]]
name = "text"
data = "set"
[[stage]]
steps = 8
length = 32
batch_tokens = 64
mix = { text = 1 }
[validation]
source = "text"
every = 4
tokens = 64
[sample]
every = 4
prompt = "the"
tokens = 4
)";
}

TEST_F(CliTest, TextBecomesADataSetThatTrainsAModel) {
  std::string text;
  for (int i = 0; i < 20; ++i) text += "the cat and the dog " + std::to_string(i) + '\0';
  WriteText(folder_ / "text.txt", text);
  const Outcome built = Run("data build text.txt set --tokenizer model --quiet");
  EXPECT_EQ(built.exit_code, 0) << built.err;
  EXPECT_NE(built.out.find("set: 20 documents"), std::string::npos) << built.out;
  const Outcome shown = Run("data preview set --tokenizer model --rows 1");
  EXPECT_NE(shown.out.find("|t|h|e| |c|a|t|"), std::string::npos) << shown.out;

  WriteText(folder_ / "small.toml", SmallRecipe());
  const Outcome rows = Run("data preview small.toml --rows 1");
  EXPECT_NE(rows.out.find("row 0 of 'text', 32 tokens"), std::string::npos) << rows.out;
  const Outcome dry = Run("train small.toml --dry-run --threads 1");
  EXPECT_EQ(dry.exit_code, 0) << dry.err;
  EXPECT_NE(dry.out.find("stage 0: 8 steps of 64 tokens"), std::string::npos) << dry.out;
  const Outcome first = Run("train small.toml --out run --threads 1 --stop-after 5");
  EXPECT_EQ(first.exit_code, 0) << first.err;
  EXPECT_NE(first.err.find("5/8  loss "), std::string::npos) << first.err;
  const Outcome again = Run("train small.toml --out run");
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_NE(again.err.find("has checkpoints already"), std::string::npos) << again.err;
  const Outcome rest = Run("train small.toml --out run --threads 1 --resume --ranks 2");
  EXPECT_EQ(rest.exit_code, 0) << rest.err;
  EXPECT_NE(rest.err.find("going on from step 5"), std::string::npos) << rest.err;
  EXPECT_EQ(RunJson("generate run/model --max-tokens 3 --ignore-end the")["tokens"].size(), 3u);
  EXPECT_EQ(Run("report run").exit_code, 0);
  EXPECT_TRUE(fs::exists(folder_ / "run/report.html"));
}

TEST_F(CliTest, ATerminatedTrainingIsSavedAndGoesOn) {
  WriteText(folder_ / "text.txt", std::string(4000, 'x'));
  std::string recipe = SmallRecipe();
  recipe.replace(recipe.find("data = \"set\""), 12, "data = \"text.txt\"");
  recipe.replace(recipe.find("steps = 8"), 9, "steps = 1000000");
  WriteText(folder_ / "small.toml", recipe);
  // Each command on its own, so that $! is the program and not a shell around it.
  const std::string command = "cd '" + folder_.string() + "'\n'" + MM01_BINARY +
                              "' train small.toml --out run --threads 1 2>err &\np=$!\n"
                              "while kill -0 $p && [ ! -s run/metrics.jsonl ]\n"
                              "do sleep 0.05\ndone\nkill -TERM $p\nwait $p";
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 130);
  EXPECT_NE(ReadText(folder_ / "err").find("stopped and saved"), std::string::npos);
  EXPECT_FALSE(fs::is_empty(folder_ / "run/checkpoints"));
}

TEST_F(CliTest, NeedlesAreCounted) {
  Json words = Json::array();
  for (int i = 0; i < 200; ++i) words.push_back("word" + std::to_string(i));
  WriteText(folder_ / "words.json", words.dump());
  WriteText(folder_ / "hay.txt", "grass and flowers ");
  const Json report = RunJson(
      "eval needle model --length 700 --trials 2 --seed 1 --text hay.txt --words words.json");
  EXPECT_EQ(report["accuracy"], 0);
  EXPECT_EQ(report["results"].size(), 2u);
  EXPECT_EQ(report["results"][1]["depth"], 0.95);
}

TEST_F(CliTest, CompletionKnowsEveryCommand) {
  for (const std::string shell : {"bash", "zsh", "fish"}) {
    const Outcome got = Run("completion " + shell);
    EXPECT_EQ(got.exit_code, 0);
    for (const std::string& command : kCommands) {
      EXPECT_NE(got.out.find(command), std::string::npos) << shell << " " << command;
    }
    EXPECT_NE(got.out.find("repetition-penalty"), std::string::npos) << shell;
  }
}

TEST_F(CliTest, AFullDiskIsReported) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  const std::string command =
      std::string("'") + MM01_BINARY + "' --help >/dev/full 2>'" + (folder_ / "err").string() + "'";
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_EQ(ReadText(folder_ / "err"), "mm01: standard output: cannot write\n");
}

}  // namespace
