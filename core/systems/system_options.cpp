#include "core/systems/system_options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <vector>

#include "core/base/error.hpp"

namespace moescope {
namespace {

struct OwnedOption {
  std::string_view name;
  bool (*has)(System);
};

bool is_omnimoe(System system) { return system == System::kOmniMoe; }
bool has_schedules(System system) {
  return is_omnimoe(system) || SystemShape{.system = system}.has_product_keys();
}
bool has_ffn_experts(System system) { return SystemShape{.system = system}.has_ffn_experts(); }
bool has_activation(System system) { return system != System::kPkm; }
bool has_product_keys(System system) { return SystemShape{.system = system}.has_product_keys(); }

constexpr std::array kOwned = {
    OwnedOption{"grid", is_omnimoe},
    OwnedOption{"schedule", has_schedules},
    OwnedOption{"group_size", is_omnimoe},
    OwnedOption{"tile_tokens", is_omnimoe},
    OwnedOption{"expert_size", has_ffn_experts},
    OwnedOption{"heads", has_product_keys},
    OwnedOption{"key_size", has_product_keys},
    OwnedOption{"activation", has_activation},
};

}  // namespace

bool system_has(System system, std::string_view option) {
  const auto* owned = std::ranges::find(kOwned, option, &OwnedOption::name);
  return owned == kOwned.end() || owned->has(system);
}

void require_system_has(std::span<const System> asked, std::string_view option, std::string_view value) {
  const auto has = [option](System system) { return system_has(system, option); };
  if (std::ranges::any_of(asked, has)) {
    return;
  }
  std::vector<std::string_view> owners;
  for (const System system : systems()) {
    if (has(system)) {
      owners.push_back(to_string(system));
    }
  }
  std::vector<std::string_view> others;
  for (const System system : asked) {
    others.push_back(to_string(system));
  }
  throw InvalidArgument(option, value,
                        fmt::format("is for {}; {} {} none", fmt::join(owners, ", "), fmt::join(others, ", "),
                                    others.size() == 1 ? "has" : "have"));
}

}  // namespace moescope
