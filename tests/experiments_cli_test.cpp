#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/result.hpp"
#include "core/stage.hpp"
#include "tests/support/json_schema.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

/// Runs the real program: exit codes, messages, files.
namespace moescope {
namespace {

using test::Outcome;
using test::read_text;
using test::run_moescope;
using test::TemporaryDirectory;
using test::write_text;

int code_of(ExitCode code) { return static_cast<int>(code); }

/// A shape that any command is done with at once.
std::vector<std::string> small(std::vector<std::string> arguments) {
  for (const char* more :
       {"-L", "32", "-d", "16", "--grid", "8x6", "-K", "4", "--min-samples", "3", "--max-time", "0.01"}) {
    arguments.emplace_back(more);
  }
  return arguments;
}

TEST(Cli, HelpTeachesEverySubcommandAndTheExitCodes) {
  const TemporaryDirectory directory;
  const Outcome help = run_moescope({"--help"}, directory);
  EXPECT_EQ(help.code, 0);
  for (const char* word : {"compare", "run", "check", "inspect", "ceilings", "profile", "roofline", "golden",
                           "counters", "doctor", "Exit codes", "70  a bug in moescope"}) {
    EXPECT_NE(help.out.find(word), std::string::npos) << word;
  }
  for (const char* command : {"compare", "run", "check", "inspect", "ceilings", "profile", "roofline",
                              "golden", "counters", "doctor"}) {
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

TEST(Cli, CeilingsWritesADeviceThatTheSimulatorTakes) {
  const TemporaryDirectory directory;
  const std::string rows = MOESCOPE_SOURCE_DIR "/results/h100/ceilings.jsonl";
  const Outcome outcome = run_moescope(
      {"ceilings", "--rows", rows, "--like", "h100-sxm", "--device-json", "./h100.json"}, directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("recorded: NVIDIA H100 80GB HBM3"), std::string::npos) << outcome.out;
  const Outcome simulated = run_moescope({"simulate", "-L", "8", "-d", "16", "--grid", "8x6", "-K", "4",
                                          "--schedule", "staircase", "--device", "./h100.json", "-q"},
                                         directory);
  EXPECT_EQ(simulated.code, 0) << simulated.err;
  EXPECT_NE(simulated.out.find("NVIDIA H100 80GB HBM3"), std::string::npos) << simulated.out;
  EXPECT_EQ(run_moescope({"ceilings", "--rows", rows, "--device-json", "x.json"}, directory).code,
            code_of(ExitCode::kInvalidArgument))
      << "somebody has to say what nobody measures";
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "x.json"));
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
            code_of(ExitCode::kInvalidArgument));
  EXPECT_EQ(run_moescope(small({"profile", "--source", "cupti", "--output", "out3"}), directory).code,
            code_of(ExitCode::kInvalidArgument))
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
      {{"run", "--grid", "8x-1"}, ExitCode::kInvalidArgument, "grid_cols = -1: must be >= 1"},
      {{"run", "--num-experts", "10"}, ExitCode::kInvalidArgument, "num_experts = 10: must be a square"},
      {{"run", "--num-experts", "16", "--grid", "4x4"},
       ExitCode::kInvalidArgument,
       "cannot be given beside --grid"},
      {{"run", "-L", "0"}, ExitCode::kInvalidArgument, "num_tokens = 0: must be >= 1"},
      {{"run", "--dtype", "fp8"}, ExitCode::kInvalidArgument, "dtype = fp8"},
      {{"run", "--activation", "tanh"}, ExitCode::kInvalidArgument, "activation = tanh"},
      {{"run", "--gates", "hard"}, ExitCode::kInvalidArgument, "gate_mode = hard"},
      {{"run", "--l2", "tepid"}, ExitCode::kInvalidArgument, "l2 = tepid: must be cold or warm"},
      {{"run", "--backend", "abacus"}, ExitCode::kInvalidArgument, "backend = abacus: must be cpu or cuda"},
      {{"run", "--schedule", "fastest"}, ExitCode::kInvalidArgument, "schedule = fastest"},
      {{"run", "--schedule", "sparse_library"}, ExitCode::kInvalidArgument, "schedule = sparse_library"},
      {{"run", "--schedule", "staircase", "--schedule", "auto"}, ExitCode::kInvalidArgument, "run takes one"},
      {{"run", "--group-size", "0"}, ExitCode::kInvalidArgument, "group_size = 0: must be >= 1"},
      {{"run", "--threads", "-1"}, ExitCode::kInvalidArgument, "threads = -1"},
      {{"run", "--min-samples", "1"}, ExitCode::kInvalidArgument, "min_samples = 1"},
      {{"run", "--max-time", "-2"}, ExitCode::kInvalidArgument, "max_time_s = -2"},
      {{"run", "--workload", "zipf:steep"}, ExitCode::kInvalidArgument, "workload = zipf:steep"},
      {{"run", "--workload", "gaussian:1", "--grid", "4x4", "-K", "17"},
       ExitCode::kInvalidArgument,
       "top_k = 17"},
      {{"run", "--grid", "40000x40000", "--workload", "gaussian:1", "-d", "1048576"},
       ExitCode::kOutOfMemory,
       "GiB"},
      {{"run", "--system", "switch"}, ExitCode::kInvalidArgument, "system = switch: must be one of"},
      {{"run", "--system", "peer", "--system", "pkm"}, ExitCode::kInvalidArgument, "run takes one"},
      {{"run", "--system", "peer", "--preset", "tiny"},
       ExitCode::kInvalidArgument,
       "preset = tiny: for peer"},
      {{"run", "--system", "gshard", "--heads", "2"}, ExitCode::kInvalidArgument, "heads = 2: must be 1"},
      {{"run", "--system", "gshard", "-K", "33"}, ExitCode::kInvalidArgument, "top_k = 33"},
      {{"run", "--system", "peer", "--schedule", "auto"}, ExitCode::kInvalidArgument, "schedule = auto"},
      {{"run", "--system", "peer", "--grid", "8x8"}, ExitCode::kInvalidArgument, "grid = 8x8"},
      {{"run", "--system", "peer", "--workload", "zipf:1"},
       ExitCode::kInvalidArgument,
       "workload = zipf:1: must be gaussian:STD"},
      {{"compare", "--system", "omnimoe", "--system", "pkm", "--heads", "3"},
       ExitCode::kInvalidArgument,
       "top_k = 64: must be a multiple of heads = 3"},
      {{"run", "--workload", "snapshot:absent.safetensors"}, ExitCode::kBadFile, "absent.safetensors"},
      {{"run", "--workload", "snapshot:lie.safetensors"}, ExitCode::kBadFile, "lie.safetensors"},
      {{"inspect", "--workload", "zipf:1", "--workload", "zipf:2", "--save-trace", "t.safetensors"},
       ExitCode::kInvalidArgument,
       "save_trace"},
      {{"counters", "--metrics", "hbm_bytes"}, ExitCode::kInvalidArgument, "metrics = hbm_bytes"},
      {{"counters", "--chip", "GH999"}, ExitCode::kInvalidArgument, "chip = GH999"},
      {{"doctor", "--backend", "abacus"},
       ExitCode::kInvalidArgument,
       "backend = abacus: must be cpu or cuda"},
      {{"check", "--sampled-tokens", "0"}, ExitCode::kInvalidArgument, "sampled_tokens = 0"},
      {{"compare", "--workload", "zipf:1", "--output", "lie.safetensors/sub", "-L", "8"},
       ExitCode::kBadFile,
       "lie.safetensors/sub"},
  };
  for (const BadCall& call : calls) {
    const Outcome outcome = run_moescope(call.arguments, directory);
    EXPECT_EQ(outcome.code, code_of(call.code)) << call.message << "\n" << outcome.err;
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
  EXPECT_EQ(cuda.code, has_gpu ? 0 : code_of(ExitCode::kNoDevice)) << cuda.out;
}

TEST(Cli, SaysInOneLineThatThereIsNoGpu) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(small({"run", "--backend", "cuda", "--quiet"}), directory);
  if (outcome.code == 0) {
    GTEST_SKIP() << "there is a GPU here";
  }
  EXPECT_EQ(outcome.code, code_of(ExitCode::kNoDevice)) << outcome.err;
  EXPECT_TRUE(outcome.err.starts_with("moescope: no usable GPU: ")) << outcome.err;
}

/// Rows of a real run, checked against the published schema line by line.
std::vector<ResultRow> valid_rows(const std::filesystem::path& results) {
  const test::JsonSchema schema(
      nlohmann::json::parse(read_text(std::string(MOESCOPE_SOURCE_DIR) + "/core/result.schema.json")));
  std::istringstream lines(read_text(results / "rows.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    EXPECT_EQ(schema.violation(nlohmann::json::parse(line)), "");
  }
  EXPECT_EQ(schema.violation(nlohmann::json::parse(read_text(results / "run.json"))), "");
  return read_rows(results / "rows.jsonl").at(0).rows;
}

bool has_row(const std::vector<ResultRow>& rows, std::string_view schedule, std::string_view stage,
             std::string_view metric, Status status) {
  return std::any_of(rows.begin(), rows.end(), [&](const ResultRow& row) {
    return row.schedule == schedule && row.stage == stage && row.metric == metric && row.status == status;
  });
}

TEST(Compare, MeasuresEveryScheduleAndWritesRowsAndAFigure) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope(small({"compare", "--output", "out", "--dtype", "fp32", "--shared-size", "8"}), directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto rows = valid_rows(directory.path() / "out");
  std::set<std::string> workloads;
  for (const ResultRow& row : rows) {
    workloads.insert(row.workload);
    EXPECT_EQ(row.backend, "cpu");
    EXPECT_EQ(row.num_tokens, 32);
    EXPECT_EQ(row.grid_rows, 8);
    EXPECT_EQ(row.grid_cols, 6);
    if (row.metric == "relative_error" && row.status == Status::kOk) {
      EXPECT_LE(*row.value, 1e-5) << row.schedule;
    }
  }
  EXPECT_EQ(workloads, (std::set<std::string>{"zipf:0", "zipf:0.5", "zipf:1", "zipf:1.5", "zipf:2"}));
  for (const char* schedule : {"token_centric", "expert_centric", "staircase", "dense_masked"}) {
    for (const char* metric :
         {"time_s", "l2_read_bytes", "hbm_read_bytes", "useful_flop", "executed_flop", "relative_error"}) {
      EXPECT_TRUE(has_row(rows, schedule, "layer", metric, Status::kOk)) << schedule << " " << metric;
    }
    EXPECT_TRUE(has_row(rows, schedule, "layer", "speed_up_over_token_centric", Status::kOk)) << schedule;
    EXPECT_NE(outcome.out.find(schedule), std::string::npos);
  }
  EXPECT_TRUE(has_row(rows, "sparse_library", "layer", "time_s", Status::kSkipped));
  EXPECT_TRUE(has_row(rows, "none", "router_select", "reuse", Status::kOk));
  EXPECT_TRUE(has_row(rows, "none", "experts", "floor_bytes", Status::kOk));
  EXPECT_NE(outcome.out.find("rows:   out/rows.jsonl"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(directory.path() / "out" / "skew.gp"));
  EXPECT_NE(outcome.out.find("figure: "), std::string::npos);
  EXPECT_EQ(outcome.err.find('\r'), std::string::npos) << "plain lines when not on a terminal";
  EXPECT_NE(outcome.err.find("[1/5] zipf:0\n[2/5] zipf:0.5, about"), std::string::npos) << outcome.err;
  EXPECT_TRUE(read_text(directory.path() / "out" / "rows.csv").starts_with("schema_version,run_id,system"));
}

TEST(Compare, PutsSystemsSideBySide) {
  const TemporaryDirectory directory;
  std::vector<std::string> arguments = {"compare", "--output", "out", "-L", "24", "-d", "32"};
  for (const char* system : {"dense_mlp", "gshard", "deepseekmoe", "pkm", "peer", "omnimoe"}) {
    arguments.insert(arguments.end(), {"--system", system});
  }
  arguments.insert(arguments.end(), {"--min-samples", "3", "--max-time", "0.01"});
  const Outcome outcome = run_moescope(arguments, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto rows = valid_rows(directory.path() / "out");
  const auto find = [&](const std::string& system, const std::string& schedule, const std::string& metric) {
    const auto row = std::find_if(rows.begin(), rows.end(), [&](const ResultRow& r) {
      return r.system == system && r.schedule == schedule && r.stage == "layer" && r.metric == metric;
    });
    return row == rows.end() ? nullptr : &*row;
  };
  const std::vector<std::pair<std::string, std::string>> layers = {
      {"dense_mlp", "none"},    {"gshard", "expert_centric"}, {"deepseekmoe", "expert_centric"},
      {"pkm", "token_centric"}, {"peer", "token_centric"},    {"omnimoe", "expert_centric"},
      {"omnimoe", "staircase"}};
  for (const auto& [system, schedule] : layers) {
    for (const char* metric : {"time_s", "weight_bytes", "peak_bytes", "useful_flop", "relative_error"}) {
      const ResultRow* row = find(system, schedule, metric);
      ASSERT_TRUE(row != nullptr) << system << " " << metric;
      EXPECT_EQ(row->status, Status::kOk) << system << " " << metric;
      EXPECT_EQ(row->num_tokens, 24);
      if (row->metric == "relative_error") {
        EXPECT_LE(*row->value, 4e-3) << system;
      }
    }
  }
  EXPECT_EQ(find("gshard", "expert_centric", "time_s")->group_size, 1);
  EXPECT_EQ(find("gshard", "expert_centric", "time_s")->grid_cols, 32);
  EXPECT_EQ(find("peer", "token_centric", "time_s")->grid_rows, 64);
  EXPECT_EQ(find("peer", "none", "heads")->value, 10);
  EXPECT_EQ(find("pkm", "token_centric", "time_s")->activation, "none");
  EXPECT_EQ(find("dense_mlp", "none", "time_s")->gates, "none");
}

TEST(Compare, GoesOnPastAPointThatFails) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope(small({"compare", "--output", "out", "--quiet", "--workload", "hot:0.5,7", "--workload",
                          "zipf:1", "--schedule", "staircase"}),
                   directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "") << "quiet";
  const auto rows = valid_rows(directory.path() / "out");
  int failed = 0;
  int measured = 0;
  for (const ResultRow& row : rows) {
    failed += row.workload.starts_with("hot") && row.status == Status::kFailed ? 1 : 0;
    measured += row.workload == "zipf:1" && row.metric == "time_s" && row.status == Status::kOk ? 1 : 0;
  }
  EXPECT_EQ(failed, 1) << outcome.out;
  EXPECT_GT(measured, 0);
  EXPECT_NE(outcome.out.find("COUNT = 7 must not exceed"), std::string::npos) << "the reason is shown";
}

TEST(Compare, EndsWithTheCodeOfTheFailureWhenNothingCouldBeMeasured) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      small({"compare", "--output", "out", "--workload", "hot:0.5,7", "--schedule", "staircase"}), directory);
  EXPECT_EQ(outcome.code, code_of(ExitCode::kInvalidArgument)) << outcome.err;
}

TEST(Compare, KeepsEarlierResults) {
  const TemporaryDirectory directory;
  const auto arguments =
      small({"compare", "--output", "out", "--workload", "zipf:1", "--schedule", "staircase"});
  ASSERT_EQ(run_moescope(arguments, directory).code, 0);
  const std::string before = read_text(directory.path() / "out" / "rows.jsonl");
  const Outcome again = run_moescope(arguments, directory);
  EXPECT_EQ(again.code, code_of(ExitCode::kBadFile));
  EXPECT_NE(again.err.find("exists already"), std::string::npos) << again.err;
  EXPECT_EQ(read_text(directory.path() / "out" / "rows.jsonl"), before);
}

TEST(Run, ShowsEveryStageAndWritesOnlyWhenAsked) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope(small({"run", "--shared-size", "8", "--schedule", "expert_centric"}), directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* stage :
       {"router_project", "router_select", "schedule", "experts", "shared_mlp", "layer"}) {
    EXPECT_NE(outcome.out.find(std::string("\n") + stage), std::string::npos) << stage << "\n" << outcome.out;
  }
  EXPECT_NE(outcome.out.find("relative error"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "results"));
  const Outcome writing = run_moescope(small({"run", "--output", "out"}), directory);
  ASSERT_EQ(writing.code, 0) << writing.err;
  EXPECT_TRUE(has_row(valid_rows(directory.path() / "out"), "staircase", "layer", "time_s", Status::kOk));
}

TEST(Run, ShowsEveryStageOfABaseline) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope({"run", "--system", "deepseekmoe", "-L", "32", "-d", "32", "--dtype",
                                        "fp32", "--min-samples", "3", "--max-time", "0.01"},
                                       directory);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  for (const char* word : {"deepseekmoe_L32_d32_N64_K4", "router_project", "router_select", "schedule",
                           "experts", "shared_mlp", "peak", "bit-identical"}) {
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word << outcome.out;
  }
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "results"));
}

TEST(Run, FindsTheRecordedLayerFromAnywhereAndNamesNoPathOfThisMachine) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      {"run", "-L", "16", "--min-samples", "2", "--max-time", "0.01", "--output", "out"}, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("snapshot:data/small_layer2.safetensors"), std::string::npos);
  EXPECT_EQ(outcome.out.find(MOESCOPE_SOURCE_DIR), std::string::npos);
  for (const ResultRow& row : valid_rows(directory.path() / "out")) {
    EXPECT_EQ(row.workload, "snapshot:data/small_layer2.safetensors");
  }
}

TEST(Check, PassesOnThePointAskedForAndWritesRows) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope({"check", "-L", "32", "-d", "24", "--grid", "48x16", "-K", "24",
                                        "--dtype", "fp32", "--workload", "zipf:1.5", "--output", "out"},
                                       directory);
  EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  EXPECT_NE(outcome.out.find("cpu: 4 passed, 0 failed, 1 skipped"), std::string::npos) << outcome.out;
  const auto rows = valid_rows(directory.path() / "out");
  EXPECT_TRUE(has_row(rows, "staircase", "layer", "relative_error", Status::kOk));
  EXPECT_TRUE(has_row(rows, "staircase", "schedule", "mismatch", Status::kOk));
  EXPECT_TRUE(has_row(rows, "staircase", "router_select", "wrong_pairs", Status::kOk));
  EXPECT_TRUE(has_row(rows, "staircase", "router_select", "near_ties", Status::kOk));
  EXPECT_TRUE(has_row(rows, "sparse_library", "layer", "relative_error", Status::kSkipped));
}

TEST(Check, FailsWhenNothingCouldBeCompared) {
  const TemporaryDirectory directory;
  const Outcome outcome = run_moescope(
      {"check", "-L", "8", "-d", "8", "--grid", "4x4", "-K", "2", "--schedule", "sparse_library"}, directory);
  EXPECT_EQ(outcome.code, code_of(ExitCode::kCheckFailed)) << outcome.out;
  EXPECT_NE(outcome.out.find("0 passed, 0 failed, 1 skipped"), std::string::npos) << outcome.out;
}

TEST(Inspect, ShowsSkewAndAHistogramAndRecordsATraceThatReplays) {
  const TemporaryDirectory directory;
  const Outcome outcome =
      run_moescope({"inspect", "-L", "64", "-d", "16", "--grid", "8x8", "-K", "4", "--workload", "zipf:1",
                    "--save-trace", "t.safetensors", "--output", "out"},
                   directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("unevenness_nats"), std::string::npos);
  EXPECT_NE(outcome.out.find("pairs per expert"), std::string::npos);
  EXPECT_NE(outcome.out.find("##"), std::string::npos);
  const auto rows = valid_rows(directory.path() / "out");
  const Outcome replay = run_moescope(
      {"inspect", "-d", "16", "--workload", "trace:t.safetensors", "--output", "replayed"}, directory);
  ASSERT_EQ(replay.code, 0) << replay.err;
  const auto replayed = valid_rows(directory.path() / "replayed");
  ASSERT_EQ(replayed.size(), rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(replayed[i].metric, rows[i].metric);
    EXPECT_EQ(replayed[i].value, rows[i].value) << rows[i].metric;
  }
}

TEST(Golden, ReplaysEveryRecordedFile) {
  const TemporaryDirectory directory;
  std::vector<std::string> arguments = {"golden"};
  for (const auto& entry : std::filesystem::directory_iterator(std::string(MOESCOPE_TEST_DATA) + "/golden")) {
    arguments.push_back(entry.path().string());
  }
  const Outcome outcome = run_moescope(arguments, directory);
  EXPECT_EQ(outcome.code, 0) << outcome.out;
  for (const char* word : {"omnimoe_a.npz", "router_tall.npz", "pkm.npz", "peer_relu.npz", "peer, relu gates",
                           "gshard_topk_mixtral.npz", "deepseekmoe_v2.npz"}) {
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word;
  }
  EXPECT_EQ(outcome.out.find("skipped"), std::string::npos) << outcome.out;
}

TEST(Golden, FailsOnAFileThatIsNone) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "none.npz", "no zip file");
  const Outcome outcome = run_moescope({"golden", "none.npz"}, directory);
  EXPECT_EQ(outcome.code, code_of(ExitCode::kCheckFailed));
  EXPECT_NE(outcome.out.find("FAILED"), std::string::npos) << outcome.out;
}

}  // namespace
}  // namespace moescope
