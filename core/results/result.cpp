#include "core/results/result.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "core/base/build_info.hpp"
#include "core/base/command_text.hpp"
#include "core/base/error.hpp"
#include "core/base/hash.hpp"

namespace moescope {
namespace {

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

/// The unit that a metric's name ends with; empty where it names none.
std::string_view unit_in_name(std::string_view metric) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kEndings = {
      {{"_bytes_per_s", "bytes_per_s"},
       {"_flop_per_s", "flop_per_s"},
       {"_per_s", ""},
       {"_bytes", "bytes"},
       {"_flop", "flop"},
       {"_s", "s"},
       {"_hz", "hz"},
       {"_fraction", "fraction"},
       {"_fraction_of_ceiling", "fraction"},
       {"relative_error", "fraction"},
       {"_nats", "nats"}}};
  const auto found =
      std::ranges::find_if(kEndings, [&](const auto& ending) { return metric.ends_with(ending.first); });
  return found == kEndings.end() ? "" : found->second;
}

}  // namespace

std::string command_line_of(std::span<const char* const> words) {
  std::string line;
  for (const char* const word : words) {
    line += line.empty() ? "" : " ";
    line += shell_word(word);
  }
  return line;
}

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
  const auto moment = std::chrono::system_clock::now();
  const auto now = std::chrono::time_point_cast<std::chrono::seconds>(moment);
  const auto& info = build_info();
  RunHeader header;
  header.command_line = command_line_of({argv, static_cast<std::size_t>(argc)});
  // The same command may be started twice in one second, here or on another machine.
  header.run_id = fmt::format("{:%Y%m%dT%H%M%SZ}-{:08x}", fmt::gmtime(now),
                              short_hash(fmt::format("{} {} {}", header.command_line, ::getpid(),
                                                     moment.time_since_epoch().count())));
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

namespace {

/// Extents and their products of two must fit, as those of LayerShape. The seed has all its bits.
void require_field(const PointField& field, std::int64_t value) {
  if (field.minimum && (value < *field.minimum || value >= std::int64_t{1} << 31)) {
    throw InvalidArgument(field.key, fmt::format("{}", value),
                          fmt::format("must be in [{}, 2^31)", *field.minimum));
  }
}
void require_field(const PointField& field, const std::optional<std::int64_t>& value) {
  if (value) {
    require_field(field, *value);
  }
}
void require_field(const PointField&, std::uint64_t) {}
void require_field(const PointField& field, const std::string& value) { require_text(field.key, value); }

}  // namespace

void ResultRow::validate() const {
  for_each_field(*this, [](const PointField& field, const auto& said) { require_field(field, said); });
  require_text("stage", stage);
  require_text("metric", metric);
  require_text("unit", unit);
  if (const std::string_view named = unit_in_name(metric); !named.empty() && unit != named) {
    throw InvalidArgument("unit", unit, fmt::format("contradicts metric {}, which is in {}", metric, named));
  }
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

}  // namespace moescope
