#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>
#include <type_traits>
#include <utility>

#include "core/base/csv_text.hpp"
#include "core/base/error.hpp"
#include "core/base/utf8.hpp"
#include "core/files/output_file.hpp"
#include "core/files/regular_file.hpp"
#include "core/results/result.hpp"
#include "core/results/result_fields.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

std::string csv_cell(std::string_view text) { return csv_text(text); }
template <class T>
requires std::is_arithmetic_v<T> std::string csv_cell(T value) { return fmt::format("{}", value); }
template <class T>
requires std::is_enum_v<T> std::string csv_cell(T value) { return std::string(to_string(value)); }
template <class T>
std::string csv_cell(const std::optional<T>& value) {
  return value ? fmt::format("{}", *value) : std::string();
}

OrderedJson json_value(double value) { return value; }
OrderedJson json_value(std::int64_t value) { return value; }
OrderedJson json_value(std::uint64_t value) { return value; }
OrderedJson json_value(const std::string& value) { return value; }
template <class T>
requires std::is_enum_v<T> OrderedJson json_value(T value) { return std::string(to_string(value)); }
template <class T>
OrderedJson json_value(const std::optional<T>& value) {
  return value ? OrderedJson(*value) : OrderedJson(nullptr);
}

/// Text from outside (paths, reasons) may not be UTF-8; JSON must be.
std::string dump(const OrderedJson& json, int indent = -1) {
  return json.dump(indent, ' ', false, OrderedJson::error_handler_t::replace);
}

OrderedJson line_of(const RunHeader& header) {
  OrderedJson line;
  line["schema_version"] = kResultSchemaVersion;
  line["run_id"] = header.run_id;
  return line;
}

OrderedJson header_line(const RunHeader& header) {
  OrderedJson fields;
  detail::for_each_header_field(header,
                                [&](const char* key, const auto& value, int) { fields[key] = value; });
  OrderedJson line = line_of(header);
  line["header"] = std::move(fields);
  return line;
}

OrderedJson row_line(const RunHeader& header, const ResultRow& row) {
  OrderedJson line = line_of(header);
  detail::for_each_row_field(row,
                             [&](const char* key, const auto& value, int) { line[key] = json_value(value); });
  return line;
}

OrderedJson point_line(const RunHeader& header, const RecordedPoint& point) {
  OrderedJson fields;
  detail::for_each_point_field(
      point, [&](const char* key, const auto& value, int) { fields[key] = json_value(value); });
  OrderedJson line = line_of(header);
  line["point"] = std::move(fields);
  return line;
}

std::string csv_header() {
  std::string line = "schema_version,run_id";
  const ResultRow row;
  detail::for_each_row_field(row,
                             [&](const char* key, const auto&, int) { line += fmt::format(",{}", key); });
  return line;
}

std::string csv_line(const RunHeader& header, const ResultRow& row) {
  std::string line = fmt::format("{},{}", kResultSchemaVersion, csv_cell(std::string_view(header.run_id)));
  detail::for_each_row_field(row, [&](const char*, const auto& value, int) {
    line += ',';
    line += csv_cell(value);
  });
  return line;
}

/// As JSON and CSV can have it: names of files, in workloads and reasons, are any bytes.
ResultRow with_valid_text(ResultRow row) {
  detail::for_each_row_field(row, [](const char*, auto& value, int) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::string>) {
      value = valid_utf8(value);
    }
  });
  return row;
}

constexpr const char* kRun = "run.json";
constexpr const char* kRows = "rows.jsonl";
constexpr const char* kCsv = "rows.csv";

}  // namespace

/// The three files, and the folder around them; those that were made here are gone again unless kept.
class ResultWriter::Files {
 public:
  Files(OutputFolder folder, ExistingRun existing, std::vector<std::string> also)
      : folder_(std::move(folder)), continues_(existing == ExistingRun::kContinue) {
    also.insert(also.begin(), {kRun, kCsv});
    std::vector<std::string> all = also;
    all.push_back(kRows);
    if (!continues_) {
      folder_.require_none_of(all);
    }
    // Whoever makes it owns the folder.
    rows_.emplace(path(kRows), continues_ ? LineFile::Existing::kContinue : LineFile::Existing::kRefuse);
    if (rows_->is_new()) {
      try {
        require_rows();
        folder_.require_none_of(also);
      } catch (...) {
        rows_->remove();
        throw;
      }
    }
  }
  ~Files() {
    if (rows_->is_new() && !kept_) {
      rows_->remove();
      for (const fs::path& file : made_) {
        std::error_code ignored;
        fs::remove(file, ignored);
      }
    }
  }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;
  Files(Files&&) = delete;
  Files& operator=(Files&&) = delete;

  void keep() { kept_ = true; }
  bool continues() const { return continues_; }
  const OutputFolder& folder() const { return folder_; }
  fs::path path(const char* name) const { return folder_.path() / name; }
  LineFile& rows() { return *rows_; }
  LineFile& csv() { return *csv_; }

  void write_run(const std::string& text) { write(kRun, text); }
  void open_csv(const std::string& text) {
    write(kCsv, text);
    csv_.emplace(path(kCsv), LineFile::Existing::kContinue);
  }

 private:
  /// Of a run that goes on: what lies there without its rows cannot.
  void require_rows() const {
    for (const char* name : {kRun, kCsv}) {
      std::error_code none;
      if (continues_ && fs::exists(folder_.path() / name, none)) {
        throw FileError(path(kRows).string(), "",
                        fmt::format("is missing beside {}: put it back, or name another output directory, "
                                    "which starts anew",
                                    path(name).string()));
      }
    }
  }

  void write(const char* name, const std::string& text) {
    if (rows_->is_new() && !kept_) {
      create_file(path(name), text);
      made_.push_back(path(name));
    } else {
      replace_file(path(name), text);
    }
  }

  OutputFolder folder_;  ///< first: what is in it goes before it does
  bool continues_;
  bool kept_ = false;
  std::vector<fs::path> made_;
  std::optional<LineFile> rows_;
  std::optional<LineFile> csv_;
};

ResultWriter::ResultWriter(OutputFolder folder, RunHeader header, ExistingRun existing,
                           std::vector<std::string> also)
    : header_(std::move(header)),
      files_(std::make_unique<Files>(std::move(folder), existing, std::move(also))) {
  if (files_->continues()) {
    continue_files();
  } else {
    write_header_once();
    files_->open_csv(csv_header() + '\n');
  }
}

ResultWriter::ResultWriter(const fs::path& directory, RunHeader header, ExistingRun existing)
    : ResultWriter(OutputFolder(directory), std::move(header), existing) {}

ResultWriter::~ResultWriter() = default;
ResultWriter::ResultWriter(ResultWriter&&) noexcept = default;

const fs::path& ResultWriter::directory() const { return files_->folder().path(); }

std::vector<fs::path> ResultWriter::files() const {
  return {files_->path(kRun), files_->path(kRows), files_->path(kCsv)};
}

void ResultWriter::continue_files() {
  const fs::path& rows_file = files_->rows().path();
  std::istringstream stream(read_text(rows_file, kMostRowsBytes));
  const ResultLog log = parse_rows(stream, rows_file.string());
  for (const RecordedRun& run : log.runs) {
    if (run.header.experiment != header_.experiment) {
      throw FileError(rows_file.string(), "experiment", "is another one; name another output directory");
    }
    if (run.header.device != header_.device) {
      throw FileError(rows_file.string(), "device",
                      fmt::format("{} recorded it, this is {}; name another output directory",
                                  run.header.device, header_.device));
    }
    for (const RecordedPoint& point : run.points) {
      points_.insert(point.id);
    }
  }
  // Two processes of one second have one id.
  const std::string id = header_.run_id;
  const auto taken = [&] {
    return std::ranges::any_of(log.runs,
                               [&](const RecordedRun& run) { return run.header.run_id == header_.run_id; });
  };
  for (int next = 2; taken(); ++next) {
    header_.run_id = fmt::format("{}-{}", id, next);
  }
  files_->rows().cut(log.complete_bytes);
  std::string csv = csv_header() + '\n';
  for (const RecordedRun& run : log.runs) {
    for (const ResultRow& row : run.rows) {
      csv += csv_line(run.header, row) + '\n';
    }
  }
  files_->open_csv(csv);
  std::error_code none;
  if (!log.runs.empty() && !fs::exists(files_->path(kRun), none)) {
    files_->write_run(dump(header_line(log.runs.back().header), 2) + '\n');  // rows.jsonl has it, too
  }
}

void ResultWriter::write_header_once() {
  if (header_written_) {
    return;
  }
  const OrderedJson line = header_line(header_);
  files_->rows().append(dump(line));
  files_->write_run(dump(line, 2) + '\n');
  header_written_ = true;
}

void ResultWriter::append(std::span<const ResultRow> rows) {
  std::vector<std::string> lines;
  std::vector<std::string> csv;
  for (const ResultRow& row : rows) {
    ResultRow complete = with_valid_text(row);
    if (complete.repro.empty()) {
      complete.repro = header_.command_line;
    }
    complete.validate();
    lines.push_back(dump(row_line(header_, complete)));
    csv.push_back(csv_line(header_, complete));
  }
  if (!rows.empty()) {
    files_->rows().append(fmt::to_string(fmt::join(lines, "\n")));
    files_->keep();
    files_->csv().append(fmt::to_string(fmt::join(csv, "\n")));
  }
}

void ResultWriter::write(const ResultRow& row) {
  write_header_once();
  append({&row, 1});
}

void ResultWriter::write_point(RecordedPoint point, std::vector<ResultRow> rows) {
  point.rows = std::ssize(rows);
  point.validate();
  for (ResultRow& row : rows) {
    row.point = point.id;
    row.validate();
  }
  write_header_once();
  append(rows);
  files_->rows().sync();
  files_->rows().append(dump(point_line(header_, point)));
  files_->keep();
  points_.insert(point.id);
}

}  // namespace moescope
