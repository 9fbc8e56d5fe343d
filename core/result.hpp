#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer_shape.hpp"

namespace moescope {

inline constexpr int kResultSchemaVersion = 1;
/// Stage of rows about the device itself, whatever layer runs on it; other stages are those of stage.hpp.
inline constexpr std::string_view kDeviceStage = "device";

enum class Source : std::uint8_t { kAnalytic, kModelled, kMeasured };
enum class Status : std::uint8_t { kOk, kSkipped, kUnavailable, kFailed };
std::string_view to_string(Source source);
std::string_view to_string(Status status);

/// What one run saw and was built from; the first line of rows.jsonl, and run.json beside rows.csv.
struct RunHeader {
  std::string run_id;  ///< UTC start time and a short hash of the command line
  std::string command_line;
  std::string git_revision;
  bool git_dirty = true;
  std::string version;
  std::string build;  ///< build type, compiler, -march, sanitizers
  std::string device;
  std::string driver;                            ///< "unavailable: <reason>" without a GPU
  std::map<std::string, std::string> libraries;  ///< name -> version
  std::map<std::string, double> machine;  ///< numbers with units in keys, e.g. cpu_threads, sm_clock_max_hz
  std::string started_utc;                ///< ISO 8601
};

/// Fills in everything that does not depend on a device; `device` and `driver` say "unavailable: ..." until
/// set.
RunHeader make_run_header(int argc, const char* const* argv);

/// One value (DESIGN section 8). Field order here is column order in CSV and key order in JSON Lines.
struct ResultRow {
  std::string system = "omnimoe";
  std::string schedule;
  std::string stage;
  std::string backend;
  std::int64_t num_tokens = 0;
  std::int64_t hidden_size = 0;
  std::int64_t grid_rows = 0;
  std::int64_t grid_cols = 0;
  std::int64_t top_k = 0;
  std::string dtype;
  std::string workload;
  std::uint64_t seed = 0;
  std::string l2_state;
  Source source = Source::kMeasured;
  std::string metric;           ///< unit stands in the name: time_s, hbm_read_bytes, relative_error
  std::optional<double> value;  ///< null unless status is ok
  std::string unit;
  std::int64_t samples = 1;
  std::optional<double> spread;  ///< (max - min) / median of the samples, as a fraction
  Status status = Status::kOk;
  std::string reason;  ///< required unless status is ok

  /// The fields that come from the shape.
  void set_shape(const LayerShape& shape);
  /// Throws InvalidArgument: value without ok, ok without finite value, missing reason, unknown empty keys.
  void validate() const;
};

/// Writes `<dir>/rows.jsonl` (header line, then rows), `<dir>/rows.csv` and `<dir>/run.json`.
/// Rows are flushed as they come; an interrupted run leaves whole lines only. Throws FileError when a file
/// cannot be written.
class ResultWriter {
 public:
  ResultWriter(std::filesystem::path directory, RunHeader header);
  void write(const ResultRow& row);
  const std::filesystem::path& directory() const { return directory_; }
  const std::vector<ResultRow>& rows() const { return rows_; }
  const RunHeader& header() const { return header_; }

 private:
  std::filesystem::path directory_;
  RunHeader header_;
  std::vector<ResultRow> rows_;
  std::ofstream jsonl_;
  std::ofstream csv_;
};

/// Rows with the header they were recorded under.
struct RecordedRun {
  RunHeader header;
  std::vector<ResultRow> rows;
};
/// Reads rows.jsonl (one or several runs one after another). Throws FileError naming the line and field.
std::vector<RecordedRun> read_rows(const std::filesystem::path& file);

/// The published schema (JSON Schema draft 2020-12) as text: what core/result.schema.json holds.
std::string_view result_schema_json();

}  // namespace moescope
