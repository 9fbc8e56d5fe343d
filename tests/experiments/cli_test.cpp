#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "core/layer/stage.hpp"
#include "core/results/result.hpp"
#include "tests/support/json_schema.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

/// Runs the real program: exit codes, messages, files.
namespace moescope {
namespace {

using test::Outcome;
using test::read_text;
using test::run_moescope;
using test::small;
using test::TemporaryDirectory;
using test::write_text;

TEST(Cli, HelpTeachesEverySubcommandAndTheExitCodes) {
  const TemporaryDirectory directory;
  const Outcome help = run_moescope({"--help"}, directory);
  EXPECT_EQ(help.code, 0);
  for (const char* word :
       {"compare", "run", "check", "inspect", "ceilings", "profile", "roofline", "golden", "counters",
        "doctor", "diff", "presets", "import", "Exit codes", "70  a bug in moescope"}) {
    EXPECT_NE(help.out.find(word), std::string::npos) << word;
  }
  for (const char* command : {"compare", "run", "check", "inspect", "ceilings", "profile", "roofline",
                              "golden", "counters", "doctor", "import"}) {
    const Outcome sub = run_moescope({command, "--help"}, directory);
    EXPECT_EQ(sub.code, 0);
    EXPECT_NE(sub.out.find("Example"), std::string::npos) << command;
    EXPECT_NE(sub.out.find(std::string("moescope ") + command), std::string::npos) << command;
  }
  EXPECT_NE(run_moescope({"paper", "--help"}, directory).out.find("a100-sxm-80gb"), std::string::npos);
  EXPECT_NE(run_moescope({"run", "--help"}, directory).out.find("zipf"), std::string::npos)
      << "workloads are explained";
}

TEST(Cli, CeilingsSaysHowEachWasMeasuredAndWritesRows) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope({"ceilings", "--min-samples", "2", "--max-time", "0.01", "--output", "out"}, directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("memcpy of"), std::string::npos) << outcome.out;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  ASSERT_EQ(runs.size(), 1U);
  ASSERT_FALSE(runs[0].rows.empty());
  for (const ResultRow& row : runs[0].rows) {
    EXPECT_EQ(row.stage, kDeviceStage);
    EXPECT_GT(row.value.value_or(0), 1e6) << row.metric;
  }
}

TEST(Cli, CalibrateMakesAFolderOfRecordedRowsThatTheSimulatorTakes) {
  const TemporaryDirectory directory;
  const std::string results = test::source_path("results/h100/");
  const Outcome outcome = run_moescope(
      {"calibrate", "--recorded", "--rows", results + "ceilings.jsonl", results + "compare-64-512.jsonl.gz",
       results + "compare-1024-512.jsonl.gz", "--part", "device,rates", "--output", "made"},
      directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("NVIDIA H100 80GB HBM3: made"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("fitted: what auto chooses over the fastest"), std::string::npos) << outcome.out;
  EXPECT_TRUE(std::filesystem::exists(directory.path() / "made/rates.json"));
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "made/calibration.json"));
  const Outcome simulated = run_moescope({"simulate", "-L", "8", "-d", "16", "--grid", "8x6", "-K", "4",
                                          "--schedule", "staircase", "--device", "./made", "-q"},
                                         directory);
  EXPECT_EQ(simulated.code, 0) << simulated.err;
  EXPECT_NE(simulated.out.find("NVIDIA H100 SXM5 80GB"), std::string::npos) << simulated.out;
  // The folder by its name alone; its calibration has no constants of streams, so the nearest device's serve.
  std::ofstream(directory.path() / "made/calibration.json")
      << R"({"device": "mine", "source": "by hand", "fits": []})";
  std::vector<std::string> by_name = {"simulate", "-L", "8",  "-d",         "16",        "--grid",   "8x6",
                                      "-K",       "4",  "-q", "--schedule", "staircase", "--device", "made"};
  const Outcome named = run_moescope(by_name, directory);
  EXPECT_EQ(named.code, 0) << named.err;
  EXPECT_NE(named.out.find("calibration: by hand"), std::string::npos) << named.out;
  by_name.insert(by_name.end(), {"--calibration", "none"});
  EXPECT_EQ(named.out.substr(0, named.out.find("calibration: ")), run_moescope(by_name, directory).out);
  const Outcome unknown = run_moescope({"simulate", "--preset", "tiny", "--device", "mode"}, directory);
  EXPECT_EQ(unknown.code, test::code_of(ExitCode::kInvalidArgument));
  EXPECT_NE(unknown.err.find("device = mode: must be a device file, a folder with a device.json, or one of"),
            std::string::npos)
      << unknown.err;
}

TEST(Cli, CalibrateSaysWhatItCannotMake) {
  const TemporaryDirectory directory;
  const std::string results = test::source_path("results/h100/");
  const Outcome some = run_moescope(
      {"calibrate", "--recorded", "--rows", results + "ceilings.jsonl", "--output", "made"}, directory);
  EXPECT_EQ(some.code, 0) << some.err;
  EXPECT_NE(some.out.find("rates.json not made: the rows hold no times of schedules"), std::string::npos)
      << some.out;
  EXPECT_NE(some.out.find("calibration.json not made: the rows hold no stage times"), std::string::npos)
      << some.out;
  const Outcome none = run_moescope({"calibrate", "--recorded", "--rows", results + "ceilings.jsonl",
                                     "--part", "rates", "--output", "other"},
                                    directory);
  EXPECT_EQ(none.code, test::code_of(ExitCode::kInvalidArgument)) << none.err;
  EXPECT_NE(none.err.find("part = rates: cannot be made"), std::string::npos) << none.err;
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "other"));
  const Outcome two = run_moescope({"calibrate", "--recorded", "--rows", results + "ceilings.jsonl",
                                    test::source_path("results/h200/ceilings.jsonl"), "--output", "other"},
                                   directory);
  EXPECT_EQ(two.code, test::code_of(ExitCode::kInvalidArgument)) << two.err;
  EXPECT_NE(two.err.find("must be of one device"), std::string::npos) << two.err;
  const Outcome cpu =
      run_moescope({"calibrate", "--recorded", "--rows",
                    test::source_path("results/cpu/compare-4096-512.jsonl"), "--output", "other"},
                   directory);
  EXPECT_EQ(cpu.code, test::code_of(ExitCode::kInvalidArgument)) << cpu.err;
  EXPECT_NE(cpu.err.find("must hold runs on a GPU"), std::string::npos) << cpu.err;
}

TEST(Cli, ProfileWritesRowsAndATraceWithOrWithoutCounters) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      small({"profile", "--schedule", "staircase", "--schedule", "dense_masked", "--output", "out"}),
      directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("perf_event"), std::string::npos) << outcome.out;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  ASSERT_EQ(runs.size(), 1U);
  std::set<std::string> metrics;
  for (const ResultRow& row : runs[0].rows) {
    metrics.insert(row.metric);
    EXPECT_TRUE(row.status == Status::kOk || !row.reason.empty()) << row.metric;
  }
  for (const char* metric : {"time_s", "instructions", "hbm_read_bytes", "hbm_copy_bytes_per_s"}) {
    EXPECT_TRUE(metrics.contains(metric)) << metric;
  }
  const auto trace = nlohmann::json::parse(read_text(directory.path() / "out" / "trace.json"));
  EXPECT_GT(trace["traceEvents"].size(), 10U);
  // Rows of one run have the times and the ceilings of a roofline, if not the bytes.
  const Outcome roofline = run_moescope({"roofline", "out/rows.jsonl"}, directory);
  EXPECT_EQ(roofline.code, 0) << roofline.err;
  EXPECT_NE(roofline.out.find("expert_combine"), std::string::npos) << roofline.out;
}

TEST(Cli, ProfileSaysWhatItCannotCountWithAndGoesOn) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      small({"profile", "--schedule", "staircase", "--source", "none", "--output", "out"}), directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("no counters (none): none asked for"), std::string::npos) << outcome.out;
  EXPECT_EQ(run_moescope(small({"profile", "--source", "guess", "--output", "out2"}), directory).code,
            test::code_of(ExitCode::kInvalidArgument));
  EXPECT_EQ(run_moescope(small({"profile", "--source", "cupti", "--output", "out3"}), directory).code,
            test::code_of(ExitCode::kInvalidArgument))
      << "the CPU has no CUPTI";
  const Outcome once = run_moescope(small({"profile", "--profile", "--schedule", "staircase"}), directory);
  EXPECT_EQ(once.code, 0) << once.err;
  EXPECT_NE(once.out.find("staircase ran once"), std::string::npos) << once.out;
}

TEST(Cli, SimulateVariesDevicesAndLayers) {
  const TemporaryDirectory directory;
  const std::vector<std::string> layer = {"simulate", "-d", "16",         "--grid",    "8x6",
                                          "-K",       "4",  "--schedule", "staircase", "-q"};
  auto study = layer;
  for (const char* more : {"--vary", "num_tokens=8,16", "--vary", "l2_bytes=1MiB,2MiB", "--output", "out"}) {
    study.emplace_back(more);
  }
  const Outcome outcome = run_moescope(study, directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const auto runs = read_rows(directory.path() / "out" / "rows.jsonl");
  ASSERT_EQ(runs.size(), 1U);
  std::set<std::string> points;
  for (const ResultRow& row : runs[0].rows) {
    EXPECT_NE(row.source, Source::kMeasured) << row.metric;
    if (row.metric == "time_s" && row.stage == to_string(Stage::kLayer)) {
      points.insert(row.backend + " L" + std::to_string(row.num_tokens));
    }
  }
  const std::string device = "sim: NVIDIA H100 SXM5 80GB, l2_bytes=";
  EXPECT_EQ(points, (std::set<std::string>{device + "1MiB L16", device + "1MiB L8", device + "2MiB L16",
                                           device + "2MiB L8"}));
  auto bad = layer;
  bad.insert(bad.end(), {"--vary", "top_k=few"});
  EXPECT_NE(run_moescope(bad, directory).err.find("top_k = few: must be a whole number"), std::string::npos);
}

TEST(Cli, PrintsItsVersion) {
  const TemporaryDirectory directory;
  const Outcome version = run_moescope({"--version"}, directory);
  EXPECT_EQ(version.code, 0);
  EXPECT_TRUE(version.out.starts_with("moescope ")) << version.out;
}

struct BadCall {
  std::vector<std::string> arguments;
  ExitCode code;
  std::string message;
};

TEST(Cli, AnswersEveryBadCallWithOneLineAndItsCode) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "lie.safetensors", std::string("\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10));
  write_text(directory.path() / "golden.npz", "no zip file");
  const std::vector<BadCall> calls = {
      {{}, ExitCode::kUsage, "a subcommand is required"},
      {{"fly"}, ExitCode::kUsage, "fly"},
      {{"run", "--no-such-option"}, ExitCode::kUsage, "--no-such-option"},
      {{"paper", "--device", "h100-sxm,b200"}, ExitCode::kInvalidArgument, "device = 2 of them: must be one"},
      {{"simulate", "--device", "h100-sxm@l2_bytes=7"}, ExitCode::kInvalidArgument, "values.l2_bytes: 7"},
      {{"run", "-L", "many"}, ExitCode::kUsage, "many"},
      {{"golden"}, ExitCode::kUsage, "files"},
      {{"run", "--preset", "huge"}, ExitCode::kInvalidArgument, "preset = huge"},
      {{"run", "--grid", "8"}, ExitCode::kInvalidArgument, "grid = 8: must be ROWSxCOLS"},
      {{"run", "--grid", "8x-1"}, ExitCode::kInvalidArgument, "--grid: grid_cols = -1: must be >= 1"},
      {{"run", "--num-experts", "10"}, ExitCode::kInvalidArgument, "--num-experts = 10: must be a square"},
      {{"run", "--num-experts", "16", "--grid", "4x4"},
       ExitCode::kInvalidArgument,
       "cannot be given beside --grid"},
      {{"run", "-L", "0"}, ExitCode::kInvalidArgument, "-L = 0: must be >= 1"},
      {{"run", "--dtype", "fp8"}, ExitCode::kInvalidArgument, "dtype = fp8"},
      {{"run", "--activation", "tanh"}, ExitCode::kInvalidArgument, "activation = tanh"},
      {{"run", "--gates", "hard"}, ExitCode::kInvalidArgument, "--gates = hard"},
      {{"run", "--l2", "tepid"}, ExitCode::kInvalidArgument, "l2 = tepid: must be cold or warm"},
      {{"run", "--backend", "abacus"}, ExitCode::kInvalidArgument, "backend = abacus: must be cpu or cuda"},
      {{"run", "--schedule", "fastest"}, ExitCode::kInvalidArgument, "schedule = fastest"},
      {{"run", "--schedule", "sparse_library"}, ExitCode::kInvalidArgument, "schedule = sparse_library"},
      {{"run", "--schedule", "staircase", "--schedule", "auto"},
       ExitCode::kInvalidArgument,
       "schedule = 2 of them: run takes one"},
      {{"run", "--group-size", "0"}, ExitCode::kInvalidArgument, "--group-size = 0: must be >= 1"},
      {{"run", "--tile-tokens", "0"}, ExitCode::kInvalidArgument, "--tile-tokens = 0: must be 1 to 128"},
      {{"run", "--tile-tokens", "129"}, ExitCode::kInvalidArgument, "--tile-tokens = 129: must be 1 to 128"},
      {{"run", "--system", "peer", "--tile-tokens", "8"},
       ExitCode::kInvalidArgument,
       "--tile-tokens = 8: is for"},
      {{"run", "--threads", "-1"}, ExitCode::kInvalidArgument, "threads = -1"},
      {{"run", "--min-samples", "1"}, ExitCode::kInvalidArgument, "--min-samples = 1"},
      {{"run", "--max-time", "-2"}, ExitCode::kInvalidArgument, "--max-time = -2"},
      {{"run", "--workload", "zipf:steep"}, ExitCode::kInvalidArgument, "workload = zipf:steep"},
      {{"run", "--workload", "gaussian:1", "--grid", "4x4", "-K", "17"},
       ExitCode::kInvalidArgument,
       "-K = 17"},
      {{"run", "--grid", "40000x40000", "--workload", "gaussian:1", "-d", "1048576"},
       ExitCode::kOutOfMemory,
       "GiB"},
      {{"run", "--system", "switch"}, ExitCode::kInvalidArgument, "system = switch: must be one of"},
      {{"run", "--system", "peer", "--system", "pkm"},
       ExitCode::kInvalidArgument,
       "system = 2 of them: must be one"},
      {{"run", "--system", "peer", "--preset", "tiny"},
       ExitCode::kInvalidArgument,
       "preset = tiny: for peer"},
      {{"run", "--system", "gshard", "--heads", "1"},
       ExitCode::kInvalidArgument,
       "--heads = 1: is for pkm, peer; gshard has none"},
      {{"run", "--heads", "2"}, ExitCode::kInvalidArgument, "heads = 2: is for pkm, peer; omnimoe has none"},
      {{"run", "--system", "omnimoe", "--key-size", "16"},
       ExitCode::kInvalidArgument,
       "--key-size = 16: is for"},
      {{"compare", "--expert-size", "64"}, ExitCode::kInvalidArgument, "--expert-size = 64: is for gshard"},
      {{"compare", "--system", "omnimoe", "--system", "peer", "--expert-size", "64"},
       ExitCode::kInvalidArgument,
       "--expert-size = 64: is for gshard, deepseekmoe; omnimoe, peer have none"},
      {{"run", "--system", "gshard", "--schedule", "staircase"},
       ExitCode::kInvalidArgument,
       "schedule = staircase: must be one of auto, expert_centric, token_centric, dense_masked, "
       "padded:CAPACITY, "
       "token_rounding for gshard"},
      {{"run", "--system", "dense_mlp", "--schedule", "dense_masked"},
       ExitCode::kInvalidArgument,
       "schedule = dense_masked: is for gshard, deepseekmoe, pkm, peer, omnimoe"},
      {{"run", "--system", "peer", "--schedule", "staircase"},
       ExitCode::kInvalidArgument,
       "schedule = staircase: must be one of auto, token_centric, dense_masked for peer"},
      {{"run", "--system", "pkm", "--activation", "relu"},
       ExitCode::kInvalidArgument,
       "activation = relu: is for dense_mlp, gshard, deepseekmoe, peer, omnimoe; pkm has none"},
      {{"check", "--heads", "2"}, ExitCode::kInvalidArgument, "heads = 2: is for"},
      {{"check", "--system", "gshard", "--grid", "8x8"}, ExitCode::kInvalidArgument, "grid = 8x8: is for"},
      {{"run", "--system", "peer", "--group-size", "8"},
       ExitCode::kInvalidArgument,
       "--group-size = 8: is for"},
      {{"run", "--system", "gshard", "-K", "33"}, ExitCode::kInvalidArgument, "-K = 33"},
      {{"run", "--system", "peer", "--grid", "8x8"}, ExitCode::kInvalidArgument, "grid = 8x8"},
      {{"run", "--system", "peer", "--workload", "hot:1,65"},
       ExitCode::kInvalidArgument,
       "workload = hot:1,65: COUNT = 65 must not exceed the 64 sub-keys"},
      {{"inspect", "--system", "dense_mlp"},
       ExitCode::kInvalidArgument,
       "system = dense_mlp: routes nothing"},
      {{"compare", "--system", "omnimoe", "--system", "pkm", "--heads", "3"},
       ExitCode::kInvalidArgument,
       "top_k = 64: must be a multiple of heads = 3"},
      {{"run", "--workload", "snapshot:absent.safetensors"}, ExitCode::kBadFile, "absent.safetensors"},
      {{"run", "--workload", "snapshot:lie.safetensors"}, ExitCode::kBadFile, "lie.safetensors"},
      {{"inspect", "--workload", "zipf:1", "--workload", "zipf:2", "--save-trace", "t.safetensors"},
       ExitCode::kInvalidArgument,
       "--save-trace = t.safetensors"},
      {{"counters", "--metrics", "hbm_bytes"}, ExitCode::kInvalidArgument, "metrics = hbm_bytes"},
      {{"counters", "--chip", "GH999"}, ExitCode::kInvalidArgument, "chip = GH999"},
      {{"doctor", "--backend", "abacus"},
       ExitCode::kInvalidArgument,
       "backend = abacus: must be cpu or cuda"},
      {{"check", "--sampled-tokens", "0"}, ExitCode::kInvalidArgument, "--sampled-tokens = 0"},
      {{"compare", "--workload", "zipf:1", "--output", "lie.safetensors/sub", "-L", "8"},
       ExitCode::kBadFile,
       "lie.safetensors/sub"},
  };
  for (const BadCall& call : calls) {
    const Outcome outcome = run_moescope(call.arguments, directory);
    EXPECT_EQ(outcome.code, test::code_of(call.code)) << call.message << "\n" << outcome.err;
    EXPECT_TRUE(outcome.err.starts_with("moescope: ")) << outcome.err;
    EXPECT_NE(outcome.err.find(call.message), std::string::npos) << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(directory.path() / "results"))
        << "nothing is written: " << call.message;
  }
}

TEST(Cli, CountersListsTheCatalogueWithoutAGpu) {
  const TemporaryDirectory directory;
  const Outcome traffic = run_moescope({"counters", "--metrics", "traffic,u__raw.sum"}, directory);
  EXPECT_EQ(traffic.code, 0) << traffic.err;
  for (const char* text : {"GH100 (sm_90): ", "hbm_read_bytes, bytes: ", "= dram__bytes_read.sum",
                           "u__raw.sum, raw", "set full: "}) {
    EXPECT_NE(traffic.out.find(text), std::string::npos) << text << '\n' << traffic.out;
  }
  EXPECT_EQ(traffic.out.find("tensor_flop, flop"), std::string::npos) << traffic.out;
  const Outcome other =
      run_moescope({"counters", "--chip", "GA100", "--metrics", "tma_read_bytes"}, directory);
  EXPECT_NE(other.out.find("unavailable: tma_read_bytes: no formula for chip GA100"), std::string::npos)
      << other.out;
}

TEST(Cli, DoctorJudgesTheMachineItIsOn) {
  const TemporaryDirectory directory;
  const Outcome cpu = run_moescope({"doctor", "--backend", "cpu", "--json"}, directory);
  EXPECT_EQ(cpu.code, 0) << cpu.err;
  const auto findings = nlohmann::json::parse(cpu.out).at("findings");
  EXPECT_EQ(findings.size(), 8U);
  EXPECT_EQ(findings[1].at("what"), "cpu");
  EXPECT_EQ(findings[1].at("verdict"), "ok");
  const bool has_gpu = findings[2].at("verdict") == "ok";
  const Outcome cuda = run_moescope({"doctor", "--backend", "cuda"}, directory);
  EXPECT_EQ(cuda.code, has_gpu ? 0 : test::code_of(ExitCode::kNoDevice)) << cuda.out;
}

TEST(Cli, SaysInOneLineThatThereIsNoGpu) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(small({"run", "--backend", "cuda", "--quiet"}), directory);
  if (outcome.code == 0) {
    GTEST_SKIP() << "there is a GPU here";
  }
  EXPECT_EQ(outcome.code, test::code_of(ExitCode::kNoDevice)) << outcome.err;
  EXPECT_TRUE(outcome.err.starts_with("moescope: no usable GPU: ")) << outcome.err;
}

}  // namespace
}  // namespace moescope
