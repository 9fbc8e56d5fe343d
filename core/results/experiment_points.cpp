#include "core/results/experiment_points.hpp"

#include <set>
#include <type_traits>
#include <utility>
#include <variant>

#include "core/base/grid_text.hpp"
#include "core/base/hash.hpp"
#include "core/layer/layer_shape.hpp"
#include "core/results/experiment_axes.hpp"
#include "core/results/experiment_draw.hpp"
#include "core/systems/system.hpp"
#include "core/systems/system_options.hpp"

namespace moescope::detail {
namespace {

/// More than anyone waits for; a slip of the keyboard multiplies quickly.
constexpr std::size_t kMaxPoints = 20'000;

/// Where a point keeps what an axis sets.
using Member = std::variant<std::string*, std::optional<std::int64_t>*>;
Member member_of(ExperimentPoint& point, std::string_view axis) {
  Member member;
  if (axis == kSystems.key) {
    member = &point.system;
  } else if (axis == kPresets.key) {
    member = &point.preset;
  } else if (axis == kWorkloads.key) {
    member = &point.workload;
  } else {
    for_each_axis(point, [&](const RequestField& field, auto& value) {
      if (axis == field.key) {
        member = &value;
      }
    });
  }
  return member;
}

class PointMaker {
 public:
  PointMaker(const ExperimentFields& fields, const std::vector<Axis>& axes, const AxisGroups& groups,
             const Experiment& experiment, std::optional<std::int64_t> draw_seed)
      : fields_(fields), axes_(axes), groups_(groups), experiment_(experiment), draw_seed_(draw_seed) {}

  std::vector<ExperimentPoint> make(const Json& file) const {
    std::vector<ExperimentPoint> points;
    std::vector<std::size_t> sizes;
    for (const auto& members : groups_) {
      sizes.push_back(axes_[members.front()].values.size());
    }
    std::set<std::string> ids;
    for (const Combination& combination : combinations(file, sizes)) {
      std::vector<std::string> words;
      ExperimentPoint point = point_at(combination, words);
      check_preset(point);
      check_axes(point);
      point.label = words.empty() ? experiment_.name : fmt::format("{}", fmt::join(words, ", "));
      point.id = id_of(point);
      if (!ids.insert(point.id).second) {
        throw FileError(fields_.name(), "axes", fmt::format("make the point \"{}\" twice", point.label));
      }
      points.push_back(std::move(point));
    }
    return points;
  }

 private:
  std::vector<Combination> combinations(const Json& file, const std::vector<std::size_t>& sizes) const {
    if (file.contains("draw")) {
      const Draw draw = read_draw(file["draw"]);
      auto drawn = drawn_combinations(sizes, draw, [&](const Combination& combination) {
        std::vector<std::string> words;
        return can_select(point_at(combination, words));
      });
      if (std::ssize(drawn) < draw.count) {
        fields_.fail("draw.count", draw.count,
                     fmt::format("the axes make {} points that were found", drawn.size()));
      }
      return drawn;
    }
    std::size_t total = 1;
    for (const std::size_t size : sizes) {
      total *= size;
      if (total > kMaxPoints) {
        throw FileError(fields_.name(), "axes", fmt::format("make more than {} points", kMaxPoints));
      }
    }
    return all_combinations(sizes);
  }

  Draw read_draw(const Json& draw) const {
    if (!draw.is_object()) {
      fields_.fail("draw", draw, "must be an object of count and seed");
    }
    fields_.require_known(draw, "draw.", {"count", "seed"});
    Draw asked;
    asked.count = fields_.count("draw.count", draw.value("count", Json()), 1);
    if (asked.count > static_cast<std::int64_t>(kMaxPoints)) {
      fields_.fail("draw.count", draw["count"], fmt::format("must be at most {}", kMaxPoints));
    }
    const std::int64_t seed = fields_.count("draw.seed", draw.value("seed", Json(0)), 0);
    if (draw_seed_ && *draw_seed_ < 0) {
      throw InvalidArgument("draw_seed", fmt::to_string(*draw_seed_), "must be at least 0");
    }
    asked.seed = static_cast<std::uint64_t>(draw_seed_.value_or(seed));
    return asked;
  }

  /// Whether a drawn point's grid has as many experts as a token selects, where the axes say both.
  static bool can_select(const ExperimentPoint& point) {
    std::optional<std::int64_t> experts = point.num_experts;
    if (!point.grid.empty()) {
      const auto [rows, cols] = parse_grid(point.grid);
      experts = rows * cols;
    }
    return !experts || !point.top_k || *point.top_k <= *experts;
  }

  ExperimentPoint point_at(const Combination& combination, std::vector<std::string>& words) const {
    ExperimentPoint point;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      for (const std::size_t a : groups_[g]) {
        set(axes_[a], combination[g], point, words);
      }
    }
    return point;
  }

  static void set(const Axis& axis, std::size_t index, ExperimentPoint& point,
                  std::vector<std::string>& words) {
    const Json& value = axis.values[index];
    std::string text;
    const Member member = member_of(point, axis.kind.key);
    if (auto* const* to = std::get_if<std::string*>(&member)) {
      text = value.get<std::string>();
      **to = text;
    } else {
      const auto number = value.get<std::int64_t>();
      *std::get<std::optional<std::int64_t>*>(member) = number;
      text = fmt::format("{} {}", axis.kind.key, number);
    }
    if (axis.values.size() > 1) {
      words.push_back(std::move(text));
    }
  }

  void check_preset(const ExperimentPoint& point) const {
    if (point.preset.empty()) {
      return;
    }
    const System system = parse_system(point.system);
    fields_.checked("presets", point.preset, [&] {
      if (system == System::kOmniMoe) {
        find_preset(point.preset);
      } else {
        find_system_preset(system, point.preset);
      }
    });
  }

  /// Refuses a value that the point's system has no use for.
  void check_axes(const ExperimentPoint& point) const {
    const System system = parse_system(point.system);
    for_each_axis(point, [&](const RequestField& field, const auto& asked) {
      const Json value = json_of(asked);
      if (!value.is_null()) {
        fields_.checked(fmt::format("axes.{}", field.key), value, [&] {
          require_system_has({&system, 1}, field.key,
                             value.is_string() ? value.get<std::string>() : value.dump());
        });
      }
    });
  }

  /// Null when it was not asked for.
  static Json json_of(const std::string& asked) { return asked.empty() ? Json() : Json(asked); }
  static Json json_of(const std::optional<std::int64_t>& asked) { return asked ? Json(*asked) : Json(); }

  std::string id_of(const ExperimentPoint& point) const {
    nlohmann::json fields = {{"schedules", experiment_.schedules}};
    if (!experiment_.tuned_on.empty()) {
      fields["tuned_on"] = experiment_.tuned_on;
    }
    if (!experiment_.baseline_schedules.empty() && point.system != to_string(System::kOmniMoe)) {
      fields["baseline_schedules"] = experiment_.baseline_schedules;
    }
    fields[kSystems.key] = point.system;
    fields[kPresets.key] = point.preset;
    fields[kWorkloads.key] = point.workload;
    // Points keep their ids when a new axis comes, so it counts only where it is given. These were always
    // counted.
    for (const char* first : {"grid", "dtype", "activation", "gates", "l2"}) {
      fields[first] = "";
    }
    for_each_axis(point, [&](const RequestField& field, const auto& asked) {
      const Json value = json_of(asked);
      if (!value.is_null()) {
        fields[field.key] = value;
      }
    });
    return fmt::format("{:016x}", fnv1a(fields.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }

  const ExperimentFields& fields_;
  const std::vector<Axis>& axes_;
  const AxisGroups& groups_;
  const Experiment& experiment_;
  std::optional<std::int64_t> draw_seed_;
};

}  // namespace

std::vector<ExperimentPoint> experiment_points(const ExperimentFields& fields, const Json& file,
                                               const std::vector<Axis>& axes, const AxisGroups& groups,
                                               const Experiment& experiment,
                                               std::optional<std::int64_t> draw_seed) {
  return PointMaker(fields, axes, groups, experiment, draw_seed).make(file);
}

}  // namespace moescope::detail
