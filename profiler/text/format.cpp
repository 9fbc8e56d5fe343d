#include "profiler/text/format.hpp"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <span>

namespace moescope {
namespace {

struct Prefix {
  double factor;
  std::string_view text;
};

/// `prefixes` in falling order of factor.
std::string with_prefix(double value, std::span<const Prefix> prefixes, std::string_view unit) {
  if (value == 0 || !std::isfinite(value)) {
    return fmt::format("{} {}", value, unit);
  }
  const Prefix* chosen = &prefixes.back();
  for (const Prefix& prefix : prefixes) {
    // 0.9995 so that what rounds up to the next prefix is written with it.
    if (std::abs(value) >= 0.9995 * prefix.factor) {
      chosen = &prefix;
      break;
    }
  }
  const double scaled = value / chosen->factor;
  const double size = std::abs(scaled);
  const bool whole = chosen->factor == 1 && scaled == std::round(scaled);
  const int decimals = whole || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f} {}{}", scaled, decimals, chosen->text, unit);
}

}  // namespace

std::string format_bytes(double bytes) {
  static constexpr std::array<Prefix, 5> kBinary = {
      {{0x1p40, "Ti"}, {0x1p30, "Gi"}, {0x1p20, "Mi"}, {0x1p10, "Ki"}, {1, ""}}};
  return with_prefix(bytes, kBinary, "B");
}

std::string format_seconds(double seconds) {
  static constexpr std::array<Prefix, 4> kSmall = {{{1, ""}, {1e-3, "m"}, {1e-6, "u"}, {1e-9, "n"}}};
  return with_prefix(seconds, kSmall, "s");
}

std::string format_engineering(double value, std::string_view unit) {
  static constexpr std::array<Prefix, 8> kSi = {
      {{1e15, "P"}, {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}, {1, ""}, {1e-3, "m"}, {1e-6, "u"}}};
  return with_prefix(value, kSi, unit);
}

std::string format_percent(double fraction) { return fmt::format("{:.1f} %", 100 * fraction); }

}  // namespace moescope
