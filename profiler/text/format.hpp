#pragma once

#include <string>
#include <string_view>

namespace moescope {

/// Three significant digits with a binary prefix: "512 B", "1.18 MiB".
std::string format_bytes(double bytes);
/// Three significant digits with an SI prefix: "1.23 ms", "45.6 s".
std::string format_seconds(double seconds);
/// Three significant digits with an SI prefix: format_engineering(1.2e10, "flop") is "12.0 Gflop".
std::string format_engineering(double value, std::string_view unit);
/// A fraction as a percentage: format_percent(0.0123) is "1.2 %".
std::string format_percent(double fraction);

}  // namespace moescope
