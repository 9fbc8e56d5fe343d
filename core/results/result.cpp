#include "core/results/result.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/sysinfo.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/base/build_info.hpp"
#include "core/base/command_text.hpp"
#include "core/base/error.hpp"
#include "core/base/hash.hpp"

namespace moescope {
namespace {

std::string command_line_of(int argc, const char* const* argv) {
  std::string line;
  for (int i = 0; i < argc; ++i) {
    line += i == 0 ? "" : " ";
    line += shell_word(argv[i]);
  }
  return line;
}

/// Folded to 32 bits: it only tells runs of one second apart.
std::uint32_t short_hash(std::string_view text) {
  const std::uint64_t hash = fnv1a(text);
  return static_cast<std::uint32_t>(hash ^ (hash >> 32));
}

void require_text(std::string_view field, const std::string& value) {
  if (value.empty()) {
    throw InvalidArgument(field, "\"\"", "a row needs it; use \"none\" where it does not apply");
  }
}

}  // namespace

std::string_view to_string(Source source) {
  switch (source) {
    case Source::kAnalytic:
      return "analytic";
    case Source::kModelled:
      return "modelled";
    case Source::kMeasured:
      return "measured";
  }
  return "?";
}

std::string_view to_string(Status status) {
  switch (status) {
    case Status::kOk:
      return "ok";
    case Status::kSkipped:
      return "skipped";
    case Status::kUnavailable:
      return "unavailable";
    case Status::kFailed:
      return "failed";
  }
  return "?";
}

RunHeader make_run_header(int argc, const char* const* argv) {
  const auto now = std::chrono::time_point_cast<std::chrono::seconds>(std::chrono::system_clock::now());
  const auto& info = build_info();
  RunHeader header;
  header.command_line = command_line_of(argc, argv);
  header.run_id = fmt::format("{:%Y%m%dT%H%M%SZ}-{:08x}", fmt::gmtime(now), short_hash(header.command_line));
  header.git_revision = info.git_revision;
  header.git_dirty = info.git_dirty;
  header.version = info.version;
  header.build = fmt::format("{}, {}, -march={}{}{}", info.build_type, info.compiler, info.arch,
                             info.sanitize.empty() ? "" : ", sanitizers ", info.sanitize);
  header.device = "unavailable: no backend chosen";
  header.driver = "unavailable: no GPU in this run";
  header.libraries["fmt"] =
      fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
  header.libraries["nlohmann_json"] = fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR,
                                                  NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH);
  header.libraries["compiler"] = info.compiler;
  if (!info.cuda_compiler.empty()) {
    header.libraries["cuda_compiler"] = info.cuda_compiler;
  }
  header.machine["cpu_threads"] = std::thread::hardware_concurrency();
  struct sysinfo memory {};
  if (sysinfo(&memory) == 0) {
    header.machine["memory_bytes"] = static_cast<double>(memory.totalram) * memory.mem_unit;
  }
  header.started_utc = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(now));
  return header;
}

void ResultRow::set_shape(const LayerShape& shape) {
  num_tokens = shape.num_tokens;
  hidden_size = shape.hidden_size;
  grid_rows = shape.grid_rows;
  grid_cols = shape.grid_cols;
  top_k = shape.top_k;
  shared_size = shape.shared_size;
  dtype = to_string(shape.dtype);
  activation = to_string(shape.activation);
  gates = to_string(shape.gate_mode);
}

namespace {

/// Extents and their products of two must fit, as those of LayerShape.
void require_extent(std::string_view field, std::optional<std::int64_t> value, std::int64_t least) {
  if (value && (*value < least || *value >= std::int64_t{1} << 31)) {
    throw InvalidArgument(field, fmt::format("{}", *value), fmt::format("must be in [{}, 2^31)", least));
  }
}

}  // namespace

void ResultRow::validate() const {
  require_text("system", system);
  require_text("schedule", schedule);
  require_text("stage", stage);
  require_text("backend", backend);
  require_text("dtype", dtype);
  require_text("activation", activation);
  require_text("gates", gates);
  require_text("workload", workload);
  require_text("l2_state", l2_state);
  require_text("metric", metric);
  require_text("unit", unit);
  require_extent("L", num_tokens, 0);
  require_extent("d", hidden_size, 0);
  require_extent("Nr", grid_rows, 0);
  require_extent("Nc", grid_cols, 0);
  require_extent("K", top_k, 0);
  require_extent("shared_size", shared_size, 0);
  require_extent("B", group_size, 1);
  require_extent("tile_tokens", tile_tokens, 1);
  if (samples < 0) {
    throw InvalidArgument("samples", fmt::format("{}", samples), "must not be negative");
  }
  if (status == Status::kOk) {
    if (!value || !std::isfinite(*value)) {
      throw InvalidArgument("value", value ? fmt::format("{}", *value) : "null",
                            fmt::format("a row of {} with status ok needs a finite one", metric));
    }
    // Whatever is counted or timed begins at 0; no clock of ours measures nothing.
    const bool timed = unit == "s" && source == Source::kMeasured;
    if (*value < 0 || (timed && *value == 0)) {
      throw InvalidArgument("value", fmt::format("{}", *value),
                            timed ? fmt::format("{}: a measured time is above 0", metric)
                                  : fmt::format("{}: must not be negative", metric));
    }
    if (samples < 1) {
      throw InvalidArgument("samples", fmt::format("{}", samples),
                            "a row with status ok rests on at least one");
    }
  } else {
    if (value) {
      throw InvalidArgument(
          "value", fmt::format("{}", *value),
          fmt::format("a row of {} with status {} must not have one", metric, to_string(status)));
    }
    if (reason.empty()) {
      throw InvalidArgument("reason", "\"\"", fmt::format("status {} needs one", to_string(status)));
    }
  }
  if (spread && (!std::isfinite(*spread) || *spread < 0)) {
    throw InvalidArgument("spread", fmt::format("{}", *spread), "must be a finite fraction >= 0");
  }
}

void RecordedPoint::validate() const {
  require_text("id", id);
  if (status != Status::kOk && reason.empty()) {
    throw InvalidArgument("reason", "\"\"", fmt::format("status {} needs one", to_string(status)));
  }
  if (!std::isfinite(elapsed_s) || elapsed_s < 0) {
    throw InvalidArgument("elapsed_s", fmt::format("{}", elapsed_s), "must be a finite time >= 0");
  }
}

std::string_view result_schema_json() {
  static constexpr std::string_view kSchema =
#include "result_schema.inc"
      ;
  return kSchema;
}

}  // namespace moescope
