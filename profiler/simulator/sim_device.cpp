#include "profiler/simulator/sim_device.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/json_text.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::pair<L2Halves, std::string_view>, 3> kHalves = {
    {{L2Halves::kOne, "one"},
     {L2Halves::kFetchAcross, "fetch_across"},
     {L2Halves::kCacheBoth, "cache_both"}}};
constexpr std::array<std::pair<Replacement, std::string_view>, 2> kReplacements = {
    {{Replacement::kLru, "lru"}, {Replacement::kRandom, "random"}}};

/// L1 is simulated with 64 sets, so that it can be sampled.
constexpr std::int64_t kL1Sets = 64;

/// The one list of keys, in file order, with the range that keeps a simulation finite: visit(key, member,
/// low, high), or visit(key, member, names) for words.
template <class Device, class Visit>
void for_each_value(Device& device, Visit&& visit) {
  visit("num_sms", device.num_sms, 1, 1024);
  visit("sm_clock_hz", device.sm_clock_hz, 1e6, 1e11);
  visit("compute_capability", device.compute_capability, 50, 999);
  visit("memory_bytes", device.memory_bytes, 1 << 20, 1LL << 50);
  visit("hbm_read_bytes_per_s", device.hbm_read_bytes_per_s, 1e6, 1e16);
  visit("hbm_write_bytes_per_s", device.hbm_write_bytes_per_s, 1e6, 1e16);
  visit("l2_bytes", device.l2_bytes, 1 << 13, 1LL << 32);
  visit("l2_ways", device.l2_ways, 1, 64);
  visit("l2_dirty_fraction", device.l2_dirty_fraction, 0.001, 1);
  visit("l2_kept_ways", device.l2_kept_ways, 0, 64);
  visit("l2_halves", device.l2_halves, kHalves);
  visit("l2_replacement", device.l2_replacement, kReplacements);
  visit("l2_bytes_per_s", device.l2_bytes_per_s, 1e6, 1e17);
  visit("l2_reduce_bytes_per_s", device.l2_reduce_bytes_per_s, 1e6, 1e17);
  visit("l1_bytes", device.l1_bytes, kLineBytes * kL1Sets, 64 * kLineBytes * kL1Sets);
  visit("l1_bytes_per_clock", device.l1_bytes_per_clock, 1, 1e5);
  visit("sm_l2_bytes_per_clock", device.sm_l2_bytes_per_clock, 1, 1e5);
  visit("shared_bytes_per_block", device.shared_bytes_per_block, 1 << 14, 1 << 24);
  visit("tensor_bf16_flop_per_s", device.tensor_bf16_flop_per_s, 1e6, 1e18);
  visit("fp32_flop_per_s", device.fp32_flop_per_s, 1e6, 1e18);
  visit("issue_per_clock", device.issue_per_clock, 0.01, 1000);
  visit("l2_latency_s", device.l2_latency_s, 0, 1e-3);
  visit("hbm_latency_s", device.hbm_latency_s, 0, 1e-3);
  visit("launch_s", device.launch_s, 0, 1);
}

/// Reads one value after another out of "values".
class ValueReader {
 public:
  ValueReader(const Json& values, std::string_view path, DeviceSpec& device)
      : values_(values), path_(path), device_(device) {}

  template <class Number>
  void operator()(const char* key, Number& member, double low, double high) {
    const Json& value = take(key);
    if (!value.is_number() || (std::is_integral_v<Number> && !value.is_number_integer())) {
      fail(key, value, std::is_integral_v<Number> ? "must be a whole number" : "must be a number");
    }
    const double number = value.get<double>();
    if (!(number >= low && number <= high)) {
      fail(key, value, fmt::format("must be in [{:g}, {:g}]", low, high));
    }
    member = value.get<Number>();
  }

  template <class Word, std::size_t kCount>
  void operator()(const char* key, Word& member,
                  const std::array<std::pair<Word, std::string_view>, kCount>& words) {
    const Json& value = take(key);
    std::string known;
    for (const auto& [word, name] : words) {
      if (value.is_string() && value.get_ref<const std::string&>() == name) {
        member = word;
        return;
      }
      known += fmt::format("{}{}", known.empty() ? "" : ", ", name);
    }
    fail(key, value, "must be one of " + known);
  }

  void check_unknown() const {
    for (const auto& [key, value] : values_.items()) {
      if (!seen_.contains(key)) {
        throw FileError(path_, "values." + detail::printable(key), "is not a value of a device");
      }
    }
  }

 private:
  const Json& take(const char* key) {
    seen_.insert(key);
    const auto entry = values_.find(key);
    if (entry == values_.end()) {
      throw FileError(path_, fmt::format("values.{}", key), "missing");
    }
    if (!entry->is_object() || !entry->contains("value") || !entry->contains("source") ||
        !(*entry)["source"].is_string() || (*entry)["source"].get_ref<const std::string&>().empty()) {
      throw FileError(path_, fmt::format("values.{}", key), "must be {\"value\": ..., \"source\": \"...\"}");
    }
    device_.sources[key] = (*entry)["source"].get<std::string>();
    return (*entry)["value"];
  }

  [[noreturn]] void fail(const char* key, const Json& value, std::string_view requirement) const {
    throw FileError(path_, fmt::format("values.{}", key), fmt::format("{}: {}", shown(value), requirement));
  }

  const Json& values_;
  std::string_view path_;
  DeviceSpec& device_;
  std::set<std::string> seen_;
};

/// Writes what ValueReader reads.
struct ValueWriter {
  const DeviceSpec& device;
  Json values = Json::object();

  void add(const char* key, Json value) {
    const auto source = device.sources.find(key);
    values[key] = {{"value", std::move(value)},
                   {"source", source == device.sources.end() ? std::string("unknown") : source->second}};
  }
  template <class Number>
  void operator()(const char* key, const Number& member, double, double) {
    add(key, member);
  }
  template <class Word, std::size_t kCount>
  void operator()(const char* key, const Word& member,
                  const std::array<std::pair<Word, std::string_view>, kCount>& words) {
    for (const auto& [word, name] : words) {
      if (word == member) {
        add(key, std::string(name));
      }
    }
  }
};

}  // namespace

MemoryGeometry DeviceSpec::memory() const {
  MemoryGeometry geometry;
  geometry.num_sms = num_sms;
  geometry.l1 = {.capacity_bytes = l1_bytes, .ways = l1_bytes / (kLineBytes * kL1Sets)};
  geometry.l2 = {.capacity_bytes = l2_bytes,
                 .ways = l2_ways,
                 .replacement = l2_replacement,
                 .dirty_bytes = static_cast<std::int64_t>(l2_dirty_fraction * static_cast<double>(l2_bytes)),
                 .kept_ways = l2_kept_ways};
  geometry.halves = l2_halves;
  return geometry;
}

StreamOptions DeviceSpec::stream_options(const StreamConstants& constants) const {
  StreamOptions options;
  options.gpu = *this;
  options.constants = constants;
  // The kernel on thresholds needs wgmma.
  options.staircase = has_wgmma() ? StaircaseKernels::kThresholds : StaircaseKernels::kLists;
  return options;
}

DeviceSpec parse_device(std::string_view json, std::string_view path) {
  DeviceSpec device;
  const auto document = parse_json<Json>(json, {std::string(path), ""});
  if (!document.is_object()) {
    throw FileError(path, "", "must hold one JSON object");
  }
  for (const auto& [key, value] : document.items()) {
    if (key != "name" && key != "runtime_names" && key != "values") {
      throw FileError(path, detail::printable(key), "is not a field of a device");
    }
  }
  if (!document.contains("name") || !document["name"].is_string() ||
      document["name"].get_ref<const std::string&>().empty()) {
    throw FileError(path, "name", "must be a text");
  }
  if (!document.contains("values") || !document["values"].is_object()) {
    throw FileError(path, "values", "must be an object");
  }
  device.name = document["name"].get<std::string>();
  if (const auto names = document.find("runtime_names"); names != document.end()) {
    const bool texts =
        names->is_array() && std::ranges::all_of(*names, [](const Json& name) { return name.is_string(); });
    if (!texts) {
      throw FileError(path, "runtime_names", "must be texts");
    }
    device.runtime_names = names->get<std::vector<std::string>>();
  }
  ValueReader read(document["values"], path, device);
  for_each_value(device, read);
  read.check_unknown();
  try {
    const MemoryGeometry geometry = device.memory();
    geometry.validate();
    if (!geometry.can_sample()) {
      throw InvalidArgument("l2_bytes", fmt::to_string(device.l2_bytes),
                            "must give a multiple of 64 sets per half of L2");
    }
  } catch (const InvalidArgument& error) {
    throw FileError(path, "values", error.what());
  }
  return device;
}

DeviceSpec read_device(const std::filesystem::path& file) {
  DeviceSpec device = parse_device(read_text(file), file.string());
  device.folder = file.parent_path();
  return device;
}

std::string device_json(const DeviceSpec& device) {
  ValueWriter write{device};
  for_each_value(device, write);
  Json document;
  document["name"] = device.name;
  if (!device.runtime_names.empty()) {
    document["runtime_names"] = device.runtime_names;
  }
  document["values"] = std::move(write.values);
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string_view to_string(L2Halves halves) {
  for (const auto& [value, name] : kHalves) {
    if (value == halves) {
      return name;
    }
  }
  return "?";
}

}  // namespace moescope
