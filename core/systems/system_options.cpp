#include "core/systems/system_options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "core/base/error.hpp"
#include "core/systems/system_traits.hpp"

namespace moescope {

bool system_has(System system, std::string_view option) {
  const auto has = [option](const SystemTraits& traits) { return traits.has(option); };
  return has(traits_of(system)) || std::ranges::none_of(system_traits(), has);
}

void require_system_has(std::span<const System> asked, std::string_view option, std::string_view value) {
  const auto has = [option](System system) { return system_has(system, option); };
  if (std::ranges::any_of(asked, has)) {
    return;
  }
  std::vector<std::string_view> others;
  for (const System system : asked) {
    others.push_back(to_string(system));
  }
  const auto owners = system_names([&](const SystemTraits& traits) { return traits.has(option); });
  throw InvalidArgument(option, value,
                        fmt::format("is for {}; {} {} none", fmt::join(owners, ", "), fmt::join(others, ", "),
                                    others.size() == 1 ? "has" : "have"));
}

}  // namespace moescope
