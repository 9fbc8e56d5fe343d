#include "core/base/grid_text.hpp"

#include "core/base/error.hpp"
#include "core/base/number_text.hpp"

namespace moescope {
namespace {

std::int64_t parse_extent(std::string_view text, std::string_view whole) {
  const auto extent = parse_number<std::int64_t>(text);
  if (!extent) {
    throw InvalidArgument(
        "grid", whole,
        fmt::format("must be ROWSxCOLS, e.g. 64x64; '{}' {}", text, number_rule<std::int64_t>()));
  }
  return *extent;
}

}  // namespace

GridExtents parse_grid(std::string_view text) {
  const auto middle = text.find_first_of("x,");
  if (middle == std::string_view::npos) {
    throw InvalidArgument("grid", text, "must be ROWSxCOLS, e.g. 64x64");
  }
  return {parse_extent(text.substr(0, middle), text), parse_extent(text.substr(middle + 1), text)};
}

}  // namespace moescope
