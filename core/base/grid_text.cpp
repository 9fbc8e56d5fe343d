#include "core/base/grid_text.hpp"

#include <charconv>

#include "core/base/error.hpp"

namespace moescope {
namespace {

std::int64_t parse_extent(std::string_view text, std::string_view whole) {
  std::int64_t extent = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), extent);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw InvalidArgument("grid", whole, "must be ROWSxCOLS, e.g. 64x64");
  }
  return extent;
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
