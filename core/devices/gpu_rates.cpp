#include "core/devices/gpu_rates.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/json_field.hpp"
#include "core/files/json_text.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {
namespace {

/// The numbers of a schedule, and of product keys, in the order of the file.
template <class Rates, class Visit>
void for_each_rate(Rates& rates, Visit&& visit) requires(requires { rates.cache_bytes_per_s; }) {
  visit("fixed_s", rates.fixed_s);
  visit("memory_bytes_per_s", rates.memory_bytes_per_s);
  visit("cache_bytes_per_s", rates.cache_bytes_per_s);
  visit("flop_per_s", rates.flop_per_s);
}
/// Those that a file may leave out: then they are 0, and count for nothing.
template <class Visit>
void for_each_chain_rate(auto& rates, Visit&& visit) {
  visit("pair_s", rates.pair_s);
  visit("step_s", rates.step_s);
  visit("chain_bytes_per_s", rates.chain_bytes_per_s);
}
template <class Visit>
void for_each_selection(auto& rates, Visit&& visit) {
  visit("pairs_of_few", rates.pairs_of_few);
  visit("pairs_of_many", rates.pairs_of_many);
  visit("strips_of_few", rates.strips_of_few);
  visit("strips_of_many", rates.strips_of_many);
}
template <class Rates, class Visit>
void for_each_rate(Rates& rates, Visit&& visit) requires(requires { rates.gather_bytes_per_s; }) {
  visit("gather_bytes_per_s", rates.gather_bytes_per_s);
  visit("memory_bytes_per_s", rates.memory_bytes_per_s);
  visit("bf16_flop_per_s", rates.bf16_flop_per_s);
  visit("fp32_flop_per_s", rates.fp32_flop_per_s);
  visit("gather_fixed_s", rates.gather_fixed_s);
  visit("masked_fixed_s", rates.masked_fixed_s);
}

template <class Rates>
void read_rates(const JsonField& field, Rates& rates) {
  for_each_rate(rates, [&](const char* key, double& rate) {
    const JsonField value = field.member(key);
    rate = value.number();
    if (!(rate > 0) || !std::isfinite(rate)) {
      value.fail("must be positive");
    }
  });
}

void read_chain_rates(const JsonField& field, ScheduleRates& rates) {
  for_each_chain_rate(rates, [&](const char* key, double& rate) {
    if (field.has(key)) {
      const JsonField value = field.member(key);
      rate = value.number();
      if (!(rate >= 0) || !std::isfinite(rate)) {
        value.fail("must not be negative");
      }
    }
  });
}

SelectionRates read_selection(const JsonField& field) {
  SelectionRates rates;
  for_each_selection(rates, [&](const char* key, SelectionRates::Terms& terms) {
    const JsonField list = field.member(key);
    const auto values = list.elements();
    if (values.size() != terms.size()) {
      list.fail(fmt::format("must have {} numbers", terms.size()));
    }
    for (std::size_t i = 0; i < terms.size(); ++i) {
      terms[i] = values[i].number();
      if (!(terms[i] >= 0) || !std::isfinite(terms[i])) {
        values[i].fail("must not be negative");
      }
    }
  });
  return rates;
}

template <class Rates>
void write_rates(nlohmann::ordered_json& json, const Rates& rates) {
  for_each_rate(rates, [&](const char* key, double rate) { json[key] = rate; });
}

/// By what each kind of rate is multiplied to carry it from one device to another.
struct Scale {
  double memory = 1;
  double cache = 1;
  double matrix = 1;
  double fp32 = 1;
};

/// What kernels that only read reach of what clock and bus of the memory give (0.94 to 0.95 wherever both are
/// known: results/*/ceilings.jsonl).
constexpr double kReachedOfPeak = 0.95;

Scale scale_between(const DeviceFolder& from, const DeviceFolder* to, const GpuFound& device) {
  if (to != nullptr) {
    const DeviceCeilingRates& a = from.ceilings;
    const DeviceCeilingRates& b = to->ceilings;
    return {.memory = b.memory_bytes_per_s / a.memory_bytes_per_s,
            .cache = b.cache_bytes_per_s / a.cache_bytes_per_s,
            .matrix = b.matrix_flop_per_s / a.matrix_flop_per_s,
            .fp32 = b.fp32_flop_per_s / a.fp32_flop_per_s};
  }
  const auto ratio = [](double b, double a) { return a > 0 && b > 0 ? b / a : 1.0; };
  const double cores = ratio(static_cast<double>(device.gpu.num_sms), static_cast<double>(from.gpu.num_sms)) *
                       ratio(device.gpu.sm_clock_hz, from.gpu.sm_clock_hz);
  return {.memory = ratio(kReachedOfPeak * device.peak_memory_bytes_per_s, from.ceilings.memory_bytes_per_s),
          .cache = cores,
          .matrix = cores,
          .fp32 = cores};
}

/// Rates as they stand in a folder, and what carries them to the device.
struct Found {
  GpuRates rates;
  Scale scale;
  std::string note;  ///< before the source; empty where they are the device's own
};

/// `wanted` says whether a file has what is looked for.
template <class Wanted>
Found find_rates(const std::vector<DeviceFolder>& folders, const GpuFound& device, const Wanted& wanted) {
  const DeviceFolder* const own = folder_of(folders, device.gpu.name);
  if (own != nullptr && own->has(kRatesFile)) {
    GpuRates rates = read_gpu_rates(own->path / kRatesFile);
    if (wanted(rates)) {
      return {std::move(rates), {}, {}};
    }
  }
  std::vector<DeviceFolder> having;
  for (const DeviceFolder& folder : folders) {
    if (folder.has(kRatesFile) && wanted(read_gpu_rates(folder.path / kRatesFile))) {
      having.push_back(folder);
    }
  }
  const DeviceFolder* const nearest =
      nearest_folder(having, own != nullptr ? own->gpu : device.gpu, kRatesFile);
  if (nearest == nullptr) {
    throw FileError(fmt::format("{}/NAME/{}", kDevicesFolder, kRatesFile), "",
                    "no device has rates for schedule auto (moescope calibrate makes them)");
  }
  const Scale scale = scale_between(*nearest, own, device);
  return {read_gpu_rates(nearest->path / kRatesFile), scale,
          fmt::format("of {}, scaled by {} to {}: memory x{:.2f}, L2 x{:.2f}, products x{:.2f}; ",
                      nearest->names.front(),
                      own != nullptr ? "measured or published ceilings" : "what the driver says",
                      device.gpu.name, scale.memory, scale.cache, scale.matrix)};
}

}  // namespace

std::vector<ScheduleRates> schedules_of_gpu() {
  // A grid row of more than 320 experts is cut into segments, for each of which rows alone gather X and add
  // to Y again; the analytic bytes count them once.
  constexpr std::int64_t kOneSegment = 320;
  // Stages hide most of one time behind another, and not all of it.
  constexpr double kSharpness = 4;
  std::vector<ScheduleRates> schedules(4);
  schedules[0] = {.schedule = parse_schedule("token_centric"), .reuse_is_near = false};
  schedules[1] = {.schedule = parse_schedule("staircase"), .executes_masked = true};
  schedules[2] = {
      .schedule = parse_schedule("staircase:rows"), .executes_masked = true, .max_grid_cols = kOneSegment};
  schedules[3] = {.schedule = parse_schedule("dense_masked"), .executes_masked = true};
  for (ScheduleRates& each : schedules) {
    each.sharpness = kSharpness;
  }
  return schedules;
}

GpuRates parse_gpu_rates(std::string_view json, std::string_view path) {
  const auto document = parse_json<nlohmann::json>(json, {std::string(path), ""});
  const JsonField file(document, path);
  GpuRates rates;
  rates.device = file.member("device").text();
  rates.source = file.member("source").text();
  rates.rows = file.has("rows") ? file.member("rows").text() : "";
  rates.schedules = schedules_of_gpu();
  std::vector<bool> seen(rates.schedules.size());
  for (const JsonField& one : file.member("schedules").elements()) {
    const JsonField name = one.member("schedule");
    const std::string text = name.text();
    const auto place = std::ranges::find_if(
        rates.schedules, [&](const ScheduleRates& each) { return to_string(each.schedule) == text; });
    if (place == rates.schedules.end()) {
      name.fail("is none that auto chooses among on a GPU");
    }
    const auto index = static_cast<std::size_t>(place - rates.schedules.begin());
    if (seen[index]) {
      name.fail("stands there twice");
    }
    seen[index] = true;
    read_rates(one, *place);
    read_chain_rates(one, *place);
  }
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (!seen[i]) {
      file.member("schedules").fail(fmt::format("must have {}", to_string(rates.schedules[i].schedule)));
    }
  }
  if (file.has("selection")) {
    rates.selection = read_selection(file.member("selection"));
  }
  if (file.has("product_keys")) {
    const JsonField field = file.member("product_keys");
    ProductKeyRates& product_keys = rates.product_keys.emplace();
    read_rates(field, product_keys);
    product_keys.source = field.member("source").text();
  }
  return rates;
}

GpuRates read_gpu_rates(const std::filesystem::path& file) {
  return parse_gpu_rates(read_text(file), file.string());
}

std::string gpu_rates_json(const GpuRates& rates) {
  nlohmann::ordered_json document;
  document["device"] = rates.device;
  document["source"] = rates.source;
  if (!rates.rows.empty()) {
    document["rows"] = rates.rows;
  }
  document["schedules"] = nlohmann::ordered_json::array();
  for (const ScheduleRates& each : rates.schedules) {
    nlohmann::ordered_json one;
    one["schedule"] = to_string(each.schedule);
    write_rates(one, each);
    for_each_chain_rate(each, [&](const char* key, double rate) {
      if (rate > 0) {
        one[key] = rate;
      }
    });
    document["schedules"].push_back(std::move(one));
  }
  if (rates.selection) {
    nlohmann::ordered_json& one = document["selection"];
    for_each_selection(*rates.selection,
                       [&](const char* key, const SelectionRates::Terms& terms) { one[key] = terms; });
  }
  if (rates.product_keys) {
    nlohmann::ordered_json& one = document["product_keys"];
    write_rates(one, *rates.product_keys);
    one["source"] = rates.product_keys->source;
  }
  return document.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

MachineRates schedule_rates(const std::vector<DeviceFolder>& folders, const GpuFound& device) {
  const Found found = find_rates(folders, device, [](const GpuRates&) { return true; });
  MachineRates rates{
      .source = found.note + found.rates.source,
      .size = {.cache_bytes = static_cast<double>(device.gpu.l2_bytes), .num_sms = device.gpu.num_sms},
      .candidates = found.rates.schedules,
      .selection = found.rates.selection};
  for (ScheduleRates& each : rates.candidates) {
    each.memory_bytes_per_s *= found.scale.memory;
    each.cache_bytes_per_s *= found.scale.cache;
    // Pairs one by one are multiplied outside the tensor cores.
    each.flop_per_s *= each.executes_masked ? found.scale.matrix : found.scale.fp32;
    // What one multiprocessor does goes by its clock, as its FLOP do.
    each.pair_s /= found.scale.fp32;
  }
  if (rates.selection) {
    for_each_selection(*rates.selection, [&](const char*, SelectionRates::Terms& terms) {
      for (double& term : terms) {
        term /= found.scale.fp32;
      }
    });
  }
  return rates;
}

ProductKeyRates product_key_rates(const std::vector<DeviceFolder>& folders, const GpuFound& device) {
  const Found found =
      find_rates(folders, device, [](const GpuRates& rates) { return rates.product_keys.has_value(); });
  ProductKeyRates rates = *found.rates.product_keys;
  rates.source = found.note + rates.source;
  rates.gather_bytes_per_s *= found.scale.cache;
  rates.memory_bytes_per_s *= found.scale.memory;
  rates.bf16_flop_per_s *= found.scale.matrix;
  rates.fp32_flop_per_s *= found.scale.fp32;
  return rates;
}

}  // namespace moescope
