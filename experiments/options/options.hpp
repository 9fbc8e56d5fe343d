#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/layer/layer_shape.hpp"
#include "core/layer/training.hpp"
#include "core/results/point.hpp"
#include "core/schedule/schedule.hpp"
#include "core/systems/system.hpp"
#include "core/workload/workload.hpp"
#include "experiments/options/cli.hpp"
#include "experiments/options/table_options.hpp"
#include "profiler/study/sampling.hpp"
#include "profiler/text/progress.hpp"
#include "reference/backend/layer_use.hpp"

namespace moescope {

/// Tokens whose output `run` and `compare` hold against the oracle: a quick look; `check` is the thorough
/// one.
inline constexpr std::int64_t kJudgedTokens = 16;

/// Options that subcommands share, as typed. What is not given stays empty.
struct CommonOptions : PointRequest {
  std::vector<std::string> systems;  ///< none: omnimoe
  std::vector<std::string> workloads;
  std::uint64_t seed = 0;
  std::vector<std::string> schedules;
  std::string tuned_on;
  std::string backend = "cpu";
  std::string output;
  int threads = 0;
  bool quiet = false;
  bool explain = false;
  std::int64_t min_samples = SamplingOptions{}.min_samples;
  double max_time_s = SamplingOptions{}.max_time_s;
  TableOptions tables;
};

/// The options of one group of a request, from its table.
void add_request_options(Cli app, PointRequest& request, RequestGroup group);
void add_shape_options(Cli app, CommonOptions& options);
void add_workload_options(Cli app, CommonOptions& options);
void add_schedule_options(Cli app, CommonOptions& options);
/// --ranks, --placement, --exchange.
void add_rank_options(Cli app, CommonOptions& options);
/// --tuned-on: of `compare`, which has several workloads.
void add_tuned_option(Cli app, CommonOptions& options);
/// --backend, --threads, --quiet.
void add_machine_options(Cli app, CommonOptions& options);
/// How a point is measured: the request's own (--l2), --min-samples, --max-time.
void add_sampling_options(Cli app, CommonOptions& options);
/// --min-samples, --max-time alone.
void add_sample_count_options(Cli app, CommonOptions& options);
/// --explain: what the cost model behind auto expects of each candidate.
void add_explain_option(Cli app, CommonOptions& options);
void add_output_option(Cli app, CommonOptions& options, const std::string& default_text);

/// A workload as asked for, and as rows name it.
struct NamedWorkload {
  WorkloadSpec spec;
  std::string name;
};

/// `text` as a workload. A file that is not where `text` says is looked for as project_path() does, so that
/// experiments in the repository run from anywhere. Throws InvalidArgument.
NamedWorkload named_workload(const std::string& text);
/// The recorded layer that comes with the project: data/small_layer2.safetensors under the current directory,
/// else beside the sources this program was built from. Throws FileError.
NamedWorkload recorded_layer();
/// Every workload asked for, "#layer=all" of a trace as one a layer. Without any: the recorded layer, or
/// gaussian:1 when a shape was asked for.
std::vector<NamedWorkload> chosen_workloads(const CommonOptions& options);

/// Takes over an extent that was asked for. Throws InvalidArgument naming `field` below `minimum`; 0 may
/// stand for "as in the file", and asking for it is no way to spell that.
void set_extent(const char* field, const std::optional<std::int64_t>& asked, std::int64_t minimum,
                std::int64_t& out);
/// The shape asked for, completed from the workload's file where it has one, and validated. Throws
/// InvalidArgument or FileError.
LayerShape resolve_shape(const CommonOptions& options, const WorkloadSpec& spec);
/// The workload's inputs under the name that rows use. Throws OutOfMemory before making anything when host
/// memory cannot hold them and what `use` says comes after.
LayerInputs make_inputs(const NamedWorkload& workload, const LayerShape& shape, std::uint64_t seed,
                        const LayerUse& use, std::shared_ptr<const ExpertWeights> experts = nullptr);

/// What the rank options ask for. Throws InvalidArgument, also for several ranks on a backend that has none.
RankOptions rank_options(const CommonOptions& options);
/// Schedules asked for, without any: all but auto. Throws InvalidArgument.
std::vector<ScheduleOptions> chosen_schedules(const CommonOptions& options);
SamplingOptions sampling_options(const CommonOptions& options);
/// --direction; forward where nothing was said. Throws InvalidArgument.
Direction asked_direction(const PointRequest& request);
/// --save; empty where nothing was said. Throws InvalidArgument, also for one beside a forward.
std::optional<SaveMode> asked_save(const PointRequest& request);
/// The step that --direction backward asks for; empty for a forward. Throws InvalidArgument.
std::optional<TrainingOptions> asked_training(const PointRequest& request);
/// Throws InvalidArgument("direction", ...) for a backward: `why` says what has the forward alone.
void require_forward(const PointRequest& request, std::string_view why);

/// Applies --threads to OpenMP. Throws InvalidArgument("threads", ...).
void apply_threads(const CommonOptions& options);
Progress::Style progress_style(const CommonOptions& options);

}  // namespace moescope
