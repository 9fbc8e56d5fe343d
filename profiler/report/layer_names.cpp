#include "profiler/report/layer_names.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace moescope {
namespace {

std::string text_of(const std::string& value) { return value == "none" ? "" : value; }
std::string text_of(std::int64_t value) { return fmt::to_string(value); }
std::string text_of(std::uint64_t value) { return fmt::to_string(value); }
std::string text_of(const std::optional<std::int64_t>& value) { return value ? fmt::to_string(*value) : ""; }

/// How an axis is called, and what stands before its value in words; both are the field's key unless they are
/// here.
struct AxisWords {
  std::string_view key;
  std::string_view name;
  std::string_view before;
};
constexpr std::array kWords = {
    AxisWords{"system", "system", ""},
    AxisWords{"direction", "direction", ""},
    AxisWords{"backend", "backend", ""},
    AxisWords{"shared_size", "shared", "shared "},
    AxisWords{"tile_tokens", "tile_tokens", "tiles of "},
    AxisWords{"dtype", "dtype", ""},
    AxisWords{"activation", "activation", ""},
    AxisWords{"workload", "workload", ""},
    AxisWords{"l2_state", "L2", "L2 "},
};

/// What is as it was before there was such a field goes without saying.
bool is_worth_words(const PointField& field, const std::string& value) {
  constexpr int kFirstWithDirection = 4;
  if (field.since < kFirstWithDirection) {
    return true;
  }
  std::string usual;
  for_each_field(Point(), [&](const PointField& other, const auto& standard) {
    usual = std::string_view(other.key) == field.key ? text_of(standard) : usual;
  });
  return value != usual;
}

}  // namespace

std::vector<LayerAxis> layer_axes(const RecordedLayer& layer) {
  const ResultRow& what = layer.what;
  const RunHeader& header = *layer.header;
  std::vector<LayerAxis> axes;
  const auto add = [&](std::string_view name, std::string value, std::string_view before) {
    std::string text = value.empty() ? "" : fmt::format("{}{}", before, value);
    axes.push_back({name, std::move(value), std::move(text)});
  };
  for_each_field(what, [&](const PointField& field, const auto& value) {
    const std::string_view key = field.key;
    if (key == "schedule" || key == "Nr") {
      return;
    }
    if (key == "Nc") {
      axes.push_back({"grid", fmt::format("{}x{}", what.grid_rows, what.grid_cols),
                      fmt::format("N {} (grid {}x{})", what.grid_rows * what.grid_cols, what.grid_rows,
                                  what.grid_cols)});
      return;
    }
    if (!is_worth_words(field, text_of(value))) {
      axes.push_back({key, text_of(value), ""});
      return;
    }
    const auto* words = std::ranges::find(kWords, key, &AxisWords::key);
    if (words != kWords.end()) {
      add(words->name, text_of(value), words->before);
    } else {
      add(key, text_of(value), fmt::format("{} ", key));
    }
  });
  add("device", header.device, "on ");
  add("revision", header.git_revision.substr(0, 7) + (header.git_dirty ? "+" : ""), "revision ");
  add("point", what.point, "point ");
  add("run", header.run_id, "run ");
  return axes;
}

std::string short_workload(const std::string& workload) {
  const bool is_file = workload.starts_with("snapshot:") || workload.starts_with("trace:");
  const std::string stem =
      is_file ? std::filesystem::path(workload.substr(workload.find(':') + 1)).stem().string() : "";
  return stem.empty() ? workload : stem;
}

void tell_apart(std::vector<std::string>& names, std::span<const std::vector<LayerAxis>> axes,
                std::initializer_list<std::string_view> without) {
  std::map<std::string, std::vector<std::size_t>> alike;
  for (std::size_t i = 0; i < names.size(); ++i) {
    alike[names[i]].push_back(i);
  }
  for (const auto& [name, members] : alike) {
    const std::vector<LayerAxis>& first = axes[members.front()];
    for (std::size_t a = 0; a < first.size(); ++a) {
      const bool differs =
          std::ranges::any_of(members, [&](std::size_t i) { return axes[i][a].value != first[a].value; });
      if (!differs || std::ranges::find(without, first[a].name) != without.end()) {
        continue;
      }
      for (const std::size_t i : members) {
        const LayerAxis& axis = axes[i][a];
        names[i] += axis.text.empty() ? fmt::format(", no {}", axis.name) : ", " + axis.text;
      }
    }
  }
}

std::vector<std::string> layer_names(std::span<const RecordedLayer> layers) {
  std::vector<std::vector<LayerAxis>> axes;
  std::vector<std::string> names;
  for (const RecordedLayer& layer : layers) {
    const ResultRow& what = layer.what;
    LayerShape shape;
    shape.num_tokens = what.num_tokens;
    shape.hidden_size = what.hidden_size;
    shape.grid_rows = what.grid_rows;
    shape.grid_cols = what.grid_cols;
    shape.top_k = what.top_k;
    names.push_back(fmt::format("{}, {} {}, L2 {}", short_workload(what.workload), shape.label(), what.dtype,
                                what.l2_state));
    names.back() += what.activation == "none" ? "" : ", " + what.activation;
    axes.push_back(layer_axes(layer));
  }
  // Every recording is a run and a point of its own: these alone say nothing of what differs.
  tell_apart(names, axes, {"run", "point"});
  tell_apart(names, axes, {});
  return names;
}

std::vector<std::string> run_names(std::span<const RunHeader* const> headers) {
  constexpr std::array<std::string (*)(const RunHeader&), 4> kParts = {
      [](const RunHeader& header) { return header.device; },
      [](const RunHeader& header) {
        return fmt::format("revision {}{}", header.git_revision.substr(0, 7), header.git_dirty ? "+" : "");
      },
      [](const RunHeader& header) { return header.started_utc.substr(0, 10); },
      [](const RunHeader& header) { return fmt::format("run {}", header.run_id); }};
  std::vector<std::string> names(headers.size());
  for (const auto& part : kParts) {
    const std::set<std::string> different(names.begin(), names.end());
    if (different.size() == headers.size()) {
      break;
    }
    std::vector<std::string> parts;
    std::ranges::transform(headers, std::back_inserter(parts),
                           [&](const auto* header) { return part(*header); });
    if (std::ranges::any_of(parts, [&](const auto& text) { return text != parts.front(); })) {
      for (std::size_t i = 0; i < names.size(); ++i) {
        names[i] += (names[i].empty() ? "" : ", ") + parts[i];
      }
    }
  }
  return names;
}

}  // namespace moescope
