#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/files/output_folder.hpp"
#include "core/results/point.hpp"

namespace moescope {

/// Stage of rows about the device itself, whatever layer runs on it; other stages are those of stage.hpp.
inline constexpr std::string_view kDeviceStage = "device";

enum class Source : std::uint8_t { kAnalytic, kModelled, kMeasured };
enum class Status : std::uint8_t { kOk, kSkipped, kUnavailable, kFailed };
std::string_view to_string(Source source);
std::string_view to_string(Status status);

/// What one run saw and was built from; the first line of rows.jsonl, and run.json beside rows.csv.
struct RunHeader {
  int schema_version = kResultSchemaVersion;  ///< that the run was written in; which fields its rows can say
  std::string run_id;  ///< UTC start time and a short hash of the command line, the process and the moment
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
  std::string experiment;                 ///< of a sweep: its experiment as canonical JSON; else empty
};

/// Fills in everything that does not depend on a device; `device` and `driver` say "unavailable: ..." until
/// set.
RunHeader make_run_header(int argc, const char* const* argv);
/// Words as a shell takes them back.
std::string command_line_of(std::span<const char* const> words);

/// One value (DESIGN section 8): of which point, which stage of it, and what. Field order is column order in
/// CSV and key order in JSON Lines (result_fields.hpp).
struct ResultRow : Point {
  std::string stage;
  Source source = Source::kMeasured;
  std::string metric;           ///< unit stands in the name: time_s, hbm_read_bytes, relative_error
  std::optional<double> value;  ///< null unless status is ok
  std::string unit;
  std::int64_t samples = 1;
  std::optional<double> spread;  ///< (max - min) / median of the samples, as a fraction
  Status status = Status::kOk;
  std::string reason;  ///< required unless status is ok
  std::string point;   ///< id of the sweep's point this row belongs to; empty outside sweeps
  std::string repro;   ///< command that measures this again; empty in version 1

  /// Throws InvalidArgument: value without ok, ok without finite value, a unit against the metric's name, a
  /// negative value or extent, a measured time of 0, missing reason, unknown empty keys.
  void validate() const;
};

/// A point of a sweep that is done: its rows count from here on, all of them or none.
struct RecordedPoint {
  std::string id;
  std::int64_t rows = 0;        ///< how many there are
  Status status = Status::kOk;  ///< ok when anything was measured, else skipped or failed
  std::string reason;           ///< required unless status is ok
  double elapsed_s = 0;         ///< what it took, for those who plan

  /// Throws InvalidArgument: no id, missing reason, a time that is none.
  void validate() const;
};

/// What to do with a directory that holds results already.
enum class ExistingRun : std::uint8_t {
  kRefuse,   ///< they are somebody's data: throw FileError
  kContinue  ///< go on after the last complete point, if it is the same experiment on the same device
};

/// Writes `<dir>/rows.jsonl` (header line, then rows), `<dir>/rows.csv` and `<dir>/run.json`.
/// Rows are flushed as they come; an interrupted run leaves whole lines only, but for the last. Throws
/// FileError when a file cannot be written; when the disk is full, what was complete stays. One process at a
/// time: a second one is refused. Of a writer that was given no row nothing is left, the folders that it made
/// included, so that whoever ends with an error before the first one has written nothing.
///
/// A continued run is a log: what an interruption left behind the last complete point is cut off, a new
/// header line follows (with the first point written, so that a run with nothing left to do changes nothing),
/// and rows.csv and run.json are made again.
class ResultWriter {
 public:
  /// Claims the folder. `also` names files that the caller is going to write there, too: a folder that has
  /// one of them is as much somebody's data as one with rows.
  ResultWriter(OutputFolder folder, RunHeader header, ExistingRun existing = ExistingRun::kRefuse,
               std::vector<std::string> also = {});
  ResultWriter(const std::filesystem::path& directory, RunHeader header,
               ExistingRun existing = ExistingRun::kRefuse);
  ~ResultWriter();
  ResultWriter(const ResultWriter&) = delete;
  ResultWriter& operator=(const ResultWriter&) = delete;
  ResultWriter(ResultWriter&&) noexcept;
  ResultWriter& operator=(ResultWriter&&) = delete;

  /// A row that counts at once. Its repro becomes the run's command line when it has none.
  void write(const ResultRow& row);
  /// Rows that count together, once the last of them is on disk; sets their `point` and `point.rows`.
  void write_point(RecordedPoint point, std::vector<ResultRow> rows);
  /// Ids of all points that are done, earlier processes' included.
  const std::set<std::string>& points() const { return points_; }
  const std::filesystem::path& directory() const;
  /// What a writer makes in its directory.
  std::vector<std::filesystem::path> files() const;
  const RunHeader& header() const { return header_; }

 private:
  class Files;

  void continue_files();
  void write_header_once();
  void append(std::span<const ResultRow> rows);

  RunHeader header_;
  std::set<std::string> points_;
  bool header_written_ = false;
  std::unique_ptr<Files> files_;
};

/// Rows with the header they were recorded under.
struct RecordedRun {
  RunHeader header;
  std::vector<ResultRow> rows;  ///< those that count
  std::vector<RecordedPoint> points;
};
/// Where the rows of a path stand: of a folder with one its rows.jsonl, else the path itself.
std::filesystem::path rows_file(const std::filesystem::path& given);

/// Reads rows.jsonl (one or several runs one after another) or rows.jsonl.gz, of this version or an earlier
/// one; of rows_file(). Of an unfinished sweep, rows of complete points count; empty lines do not; a whole
/// last line counts without its end, too. Throws FileError naming the line and field.
std::vector<RecordedRun> read_rows(const std::filesystem::path& file);

/// The same with how far it counts, for those who go on writing.
struct ResultLog {
  std::vector<RecordedRun> runs;
  std::uint64_t complete_bytes = 0;  ///< behind the last line that counts
};
/// `name` stands for the file in messages. Throws FileError.
ResultLog parse_rows(std::istream& text, const std::string& name);

/// The published schema (JSON Schema draft 2020-12) as text, made from the tables of fields: what
/// core/results/result.schema.json holds.
std::string result_schema_json();

}  // namespace moescope
