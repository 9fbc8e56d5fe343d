#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "profiler/text/table.hpp"

namespace moescope {

/// How many experts have which load, as text: one line per class of loads (0, 1, 2-3, 4-7, ... doubling) with
/// the number of experts, their share of all pairs and a bar of at most `width` characters, proportional to
/// the number. Classes above the largest load are left out; every line ends with '\n'.
Table load_histogram(std::span<const std::int64_t> loads, std::int64_t width = 40);

}  // namespace moescope
