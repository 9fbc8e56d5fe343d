#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/regular_file.hpp"
#include "core/results/result.hpp"
#include "core/results/result_fields.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string csv_cell(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) {
    return std::string(text);
  }
  std::string cell = "\"";
  for (const char c : text) {
    cell += c == '"' ? std::string("\"\"") : std::string(1, c);
  }
  return cell + '"';
}
template <class T>
requires std::is_arithmetic_v<T> std::string csv_cell(T value) { return fmt::format("{}", value); }
template <class T>
requires std::is_enum_v<T> std::string csv_cell(T value) { return std::string(to_string(value)); }
template <class T>
std::string csv_cell(const std::optional<T>& value) {
  return value ? fmt::format("{}", *value) : std::string();
}

Json json_value(double value) { return value; }
Json json_value(std::int64_t value) { return value; }
Json json_value(std::uint64_t value) { return value; }
Json json_value(const std::string& value) { return value; }
template <class T>
requires std::is_enum_v<T> Json json_value(T value) { return std::string(to_string(value)); }
template <class T>
Json json_value(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

/// Text from outside (paths, reasons) may not be UTF-8; JSON must be.
std::string dump(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

Json line_of(const RunHeader& header) {
  Json line;
  line["schema_version"] = kResultSchemaVersion;
  line["run_id"] = header.run_id;
  return line;
}

Json header_line(const RunHeader& header) {
  Json fields;
  detail::for_each_header_field(header,
                                [&](const char* key, const auto& value, int) { fields[key] = value; });
  Json line = line_of(header);
  line["header"] = std::move(fields);
  return line;
}

Json row_line(const RunHeader& header, const ResultRow& row) {
  Json line = line_of(header);
  detail::for_each_row_field(row,
                             [&](const char* key, const auto& value, int) { line[key] = json_value(value); });
  return line;
}

Json point_line(const RunHeader& header, const RecordedPoint& point) {
  Json fields;
  detail::for_each_point_field(
      point, [&](const char* key, const auto& value, int) { fields[key] = json_value(value); });
  Json line = line_of(header);
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

/// One line in one write, then flushed, so that an interrupted run leaves whole lines only, but for the last.
void write_line(std::ofstream& stream, const fs::path& file, std::string line) {
  line += '\n';
  stream.write(line.data(), static_cast<std::streamsize>(line.size())).flush();
  if (!stream) {
    throw FileError(file.string(), "", "cannot be written");
  }
}

std::ofstream open(const fs::path& file, std::ios::openmode mode) {
  std::ofstream stream(file, std::ios::binary | mode);
  if (!stream) {
    throw FileError(file.string(), "", "cannot be created");
  }
  return stream;
}

std::ofstream create(const fs::path& file) {
  // Results of an earlier run are somebody's data.
  if (fs::exists(file)) {
    throw FileError(file.string(), "", "exists already; name another output directory");
  }
  return open(file, std::ios::trunc);
}

[[noreturn]] void fail(const fs::path& file, const std::error_code& error) {
  throw FileError(file.string(), "", fmt::format("cannot be written: {}", error.message()));
}

}  // namespace

ResultWriter::Lock::Lock(const fs::path& file)
    : descriptor_(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  if (descriptor_ < 0) {
    fail(file, std::error_code(errno, std::generic_category()));
  }
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    ::close(descriptor_);
    throw FileError(file.string(), "", "another process is writing it");
  }
}

ResultWriter::Lock::~Lock() { ::close(descriptor_); }

void ResultWriter::Lock::sync() const {
  // A file system that cannot (EINVAL) is no reason to end a sweep.
  (void)::fsync(descriptor_);
}

ResultWriter::ResultWriter(fs::path directory, RunHeader header, ExistingRun existing)
    : directory_(std::move(directory)), header_(std::move(header)) {
  std::error_code error;
  fs::create_directories(directory_, error);
  if (error) {
    throw FileError(directory_.string(), "", fmt::format("cannot be created: {}", error.message()));
  }
  if (existing == ExistingRun::kContinue) {
    continue_files();
  } else {
    create_files();
  }
}

void ResultWriter::create_files() {
  auto run = create(file("run.json"));
  jsonl_ = create(file("rows.jsonl"));
  csv_ = create(file("rows.csv"));
  write_line(run, file("run.json"), dump(header_line(header_), 2));
  write_header_once();
  write_line(csv_, file("rows.csv"), csv_header());
}

void ResultWriter::continue_files() {
  const fs::path rows_file = file("rows.jsonl");
  lock_ = std::make_unique<Lock>(rows_file);
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
  std::error_code error;
  fs::resize_file(rows_file, log.complete_bytes, error);
  if (error) {
    fail(rows_file, error);
  }
  jsonl_ = open(rows_file, std::ios::app);
  csv_ = open(file("rows.csv"), std::ios::trunc);
  write_line(csv_, file("rows.csv"), csv_header());
  for (const RecordedRun& run : log.runs) {
    for (const ResultRow& row : run.rows) {
      write_line(csv_, file("rows.csv"), csv_line(run.header, row));
    }
  }
}

void ResultWriter::write_header_once() {
  if (header_written_) {
    return;
  }
  const Json line = header_line(header_);
  write_line(jsonl_, file("rows.jsonl"), dump(line));
  if (lock_) {
    auto run = open(file("run.json"), std::ios::trunc);
    write_line(run, file("run.json"), dump(line, 2));
  }
  header_written_ = true;
}

void ResultWriter::append(const ResultRow& row) {
  ResultRow complete = row;
  if (complete.repro.empty()) {
    complete.repro = header_.command_line;
  }
  complete.validate();
  write_line(jsonl_, file("rows.jsonl"), dump(row_line(header_, complete)));
  write_line(csv_, file("rows.csv"), csv_line(header_, complete));
}

void ResultWriter::write(const ResultRow& row) {
  write_header_once();
  append(row);
}

void ResultWriter::write_point(RecordedPoint point, std::vector<ResultRow> rows) {
  point.rows = std::ssize(rows);
  point.validate();
  for (ResultRow& row : rows) {
    row.point = point.id;
    row.validate();
  }
  write_header_once();
  for (const ResultRow& row : rows) {
    append(row);
  }
  if (lock_) {
    lock_->sync();
  }
  write_line(jsonl_, file("rows.jsonl"), dump(point_line(header_, point)));
  points_.insert(point.id);
}

}  // namespace moescope
