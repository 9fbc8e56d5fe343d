#include "profiler/simulator/device_variation.hpp"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/number_text.hpp"
#include "core/files/json_text.hpp"

namespace moescope {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kBothWays = "hbm_bytes_per_s";

constexpr std::array<std::pair<std::string_view, double>, 8> kSuffixes = {{{"", 1},
                                                                           {"KiB", 0x1p10},
                                                                           {"MiB", 0x1p20},
                                                                           {"GiB", 0x1p30},
                                                                           {"K", 1e3},
                                                                           {"M", 1e6},
                                                                           {"G", 1e9},
                                                                           {"T", 1e12}}};

/// Parts of `text` between `separator`s, empty ones too.
std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const auto end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) {
      return parts;
    }
    text.remove_prefix(end + 1);
  }
}

/// A number with its suffix; nothing when `text` is none.
std::optional<double> parse_scaled(std::string_view text) {
  for (const auto& [name, scale] : kSuffixes) {
    if (text.ends_with(name)) {
      const auto number = parse_number<double>(text.substr(0, text.size() - name.size()));
      if (number && std::isfinite(*number * scale)) {
        return *number * scale;
      }
    }
  }
  return std::nullopt;
}

/// Changes to the "values" of one device.
class Changes {
 public:
  Changes(Json& values, std::string_view text) : values_(values), text_(text) {}

  void make() {
    for (const std::string_view change : split(text_, '@')) {
      const auto equals = change.find('=');
      const std::string_view key = change.substr(0, equals);
      const std::string_view value =
          equals == std::string_view::npos ? std::string_view() : change.substr(equals + 1);
      if (key.empty() || value.empty()) {
        fail(fmt::format("\"{}\" is not KEY=VALUE", change));
      }
      if (key == kBothWays) {
        set("hbm_read_bytes_per_s", value);
        set("hbm_write_bytes_per_s", value);
      } else {
        set(std::string(key), value);
      }
    }
    for (const auto& [key, factor] : peak_factors_) {
      if (!changed_.contains(key)) {
        replace(values_[key], values_[key]["value"].get<double>() * factor,
                "follows num_sms and sm_clock_hz");
      }
    }
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const { throw InvalidArgument("device", text_, reason); }

  static void replace(Json& entry, Json value, std::string_view why) {
    const std::string source = fmt::format("what-if: {}; without: {}, {}", why, entry["value"].dump(),
                                           entry["source"].get<std::string>());
    entry["value"] = std::move(value);
    entry["source"] = source;
  }

  void set(const std::string& key, std::string_view text) {
    const auto entry = values_.find(key);
    if (entry == values_.end()) {
      std::string known(kBothWays);
      for (const auto& item : values_.items()) {
        known += ", " + item.key();
      }
      fail(fmt::format("{} is not one of {}", key, known));
    }
    if (!changed_.insert(key).second) {
      fail(key + " is changed twice");
    }
    const Json old = (*entry)["value"];
    if (old.is_string()) {
      replace(*entry, std::string(text), "asked for");
      return;
    }
    const bool factor = text.front() == 'x';
    const auto asked = parse_scaled(factor ? text.substr(1) : text);
    if (!asked) {
      fail(
          fmt::format("{} = {}: {}, with KiB, MiB, GiB, K, M, G or T behind it if need be, or x and a factor",
                      key, text, number_rule<double>()));
    }
    double number = *asked * (factor ? old.get<double>() : 1);
    number = factor && old.is_number_integer() ? std::round(number) : number;
    constexpr double kExact = 0x1p53;
    const bool whole = old.is_number_integer() && number == std::floor(number) && std::abs(number) < kExact;
    replace(*entry, whole ? Json(static_cast<std::int64_t>(number)) : Json(number), "asked for");
    if ((key == "num_sms" || key == "sm_clock_hz") && old.get<double>() > 0) {
      for (const char* peak : {"tensor_bf16_flop_per_s", "fp32_flop_per_s"}) {
        peak_factors_.emplace_back(peak, number / old.get<double>());
      }
    }
  }

  Json& values_;
  std::string_view text_;
  std::set<std::string, std::less<>> changed_;
  std::vector<std::pair<std::string, double>> peak_factors_;
};

}  // namespace

DeviceSpec vary_device(const DeviceSpec& device, std::string_view changes) {
  auto document = parse_json<Json>(device_json(device), {device.name, ""});
  Changes(document["values"], changes).make();
  std::string name = device.name;
  for (const std::string_view change : split(changes, '@')) {
    name += fmt::format(", {}", change);
  }
  document["name"] = name;
  try {
    // What was typed may not be UTF-8.
    return parse_device(document.dump(-1, ' ', false, Json::error_handler_t::replace), device.name);
  } catch (const FileError& error) {
    throw InvalidArgument("device", changes, error.what());
  }
}

VariedKey parse_varied_key(std::string_view text) {
  const auto equals = text.find('=');
  VariedKey varied{std::string(text.substr(0, equals)), {}};
  if (equals != std::string_view::npos) {
    for (const std::string_view value : split(text.substr(equals + 1), ',')) {
      varied.values.emplace_back(value);
    }
  }
  for (const std::string& value : varied.values) {
    if (value.empty()) {
      varied.values.clear();
      break;
    }
  }
  if (varied.key.empty() || varied.values.empty()) {
    throw InvalidArgument("vary", text, "must be KEY=VALUE,VALUE,...");
  }
  return varied;
}

}  // namespace moescope
