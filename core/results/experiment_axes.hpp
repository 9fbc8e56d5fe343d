#pragma once

#include <string_view>

#include "core/results/experiment.hpp"
#include "core/results/point.hpp"

/// The axes of experiments: the fields of a request, and what a sweep has beside them. Not for use outside
/// core/results/experiment*.cpp.
namespace moescope::detail {

void check_system(std::string_view text);
void check_workload(std::string_view text);

/// Lists of their own at the top of the file, in the order in which they change, slowest first: workloads
/// change fastest, synthetic ones share their weights.
inline constexpr RequestField kSystems{.key = "systems", .check = check_system};
inline constexpr RequestField kPresets{.key = "presets"};
inline constexpr RequestField kWorkloads{.key = "workloads", .check = check_workload};

/// Calls visit(RequestField, member) for every axis under "axes": std::string or std::optional<std::int64_t>.
template <class P, class Visit>
void for_each_axis(P& point, Visit&& visit) {
  for_each_request_field(point, [&](const RequestField& field, auto& value) {
    if (std::string_view(field.key) != "preset") {
      visit(field, value);
    }
  });
  visit(RequestField{.key = "device",
                     .about = "modelled devices as moescope simulate takes them, NAME@l2_bytes=25MiB; for "
                              "--backend model"},
        point.device);
  visit(RequestField{.key = "seed", .about = "seed of everything random", .minimum = 0}, point.seed);
}

}  // namespace moescope::detail
