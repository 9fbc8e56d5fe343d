#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/json_text.hpp"

/// What reading an experiment file needs in several places. Not for use outside core/results/experiment*.cpp.
namespace moescope::detail {

/// Keeps the order of axes in the file, which is the order of the points.
using Json = nlohmann::ordered_json;

/// Checks of one file's members; every message names the file, the field and its value.
class ExperimentFields {
 public:
  explicit ExperimentFields(std::string name) : name_(std::move(name)) {}

  const std::string& name() const { return name_; }

  [[noreturn]] void fail(std::string_view field, const Json& value, std::string_view requirement) const {
    throw FileError(name_, field, fmt::format("{}: {}", shown(value), requirement));
  }

  /// Runs a check that throws InvalidArgument, whose message names the value and what it must be.
  template <class Check>
  void checked(std::string_view field, const Json& value, const Check& check) const {
    try {
      check();
    } catch (const InvalidArgument& error) {
      fail(field, value, error.what());
    }
  }

  void require_known(const Json& object, const std::string& prefix,
                     std::initializer_list<std::string_view> known) const {
    for (const auto& [key, value] : object.items()) {
      if (std::ranges::find(known, key) == known.end()) {
        throw FileError(name_, prefix + printable(key),
                        fmt::format("is not one of {}", fmt::join(known, ", ")));
      }
    }
  }

  std::int64_t count(const std::string& field, const Json& value, std::int64_t minimum) const {
    const bool fits = value.is_number_integer() && (!value.is_number_unsigned() ||
                                                    std::in_range<std::int64_t>(value.get<std::uint64_t>()));
    if (!fits || value.get<std::int64_t>() < minimum) {
      fail(field, value, fmt::format("must be an integer >= {}", minimum));
    }
    return value.get<std::int64_t>();
  }

 private:
  std::string name_;
};

}  // namespace moescope::detail
