#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/results/point.hpp"

namespace moescope {

/// What one point of an experiment asks for, in the words of the command line. What is not given stays empty.
struct ExperimentPoint : PointRequest {
  std::string id;     ///< hash of everything below and of the experiment's schedules and tuned_on
  std::string label;  ///< what tells it from the other points: "num_tokens 64, zipf:1"
  std::string system = "omnimoe";
  std::string workload;
  std::optional<std::int64_t> seed;
  std::string device;  ///< modelled device, for the model alone
};

/// A sweep as data: every combination of its axes is a point, or some that were drawn; on each point all
/// schedules run side by side.
struct Experiment {
  std::string name;
  std::string about;
  std::vector<std::string> schedules;           ///< empty: all but auto
  std::vector<std::string> baseline_schedules;  ///< of baselines, each those that it has; empty: its own
  std::vector<std::string> metrics;             ///< that are recorded; empty: all
  std::string tuned_on;  ///< workload; what auto chooses there is measured on every point too. Empty: no
  std::optional<std::int64_t> min_samples;
  std::optional<double> max_time_s;
  std::map<std::string, double> minutes;  ///< backend -> what the whole sweep is expected to take there
  std::vector<ExperimentPoint> points;
  std::string
      canonical;  ///< the experiment's JSON without insignificant differences; tells experiments apart
};

/// Parses the text of an experiment file (experiment.schema.json): "axes", "systems", "presets" and
/// "workloads" are multiplied with each other, those that "zip" names together go in step; of all that,
/// "draw" takes some at random, with `draw_seed` in the place of the file's seed where it is given. `name`
/// stands for the file in messages. Throws FileError naming field and value of what cannot work; that a
/// combination fits together (K <= N where nothing is drawn, a file that is there) is for the run to find
/// out.
Experiment parse_experiment(std::string_view text, const std::string& name,
                            std::optional<std::int64_t> draw_seed = {});
/// The same from a file.
Experiment read_experiment(const std::filesystem::path& file, std::optional<std::int64_t> draw_seed = {});

/// The published schema (JSON Schema draft 2020-12) as text, its axes made from the table of
/// fields: what core/results/experiment.schema.json holds.
std::string experiment_schema_json();

}  // namespace moescope
