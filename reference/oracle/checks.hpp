#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "core/base/error.hpp"
#include "reference/oracle/layer_check.hpp"

namespace moescope {

/// Adds one comparison; what it throws is its failure.
class Checks {
 public:
  explicit Checks(LayerCheck& result) : result_(result) {}

  void add(Stage stage, std::string what, const char* metric, const std::function<void(StageCheck&)>& act) {
    StageCheck check;
    check.stage = stage;
    check.what = std::move(what);
    check.metric = metric;
    try {
      act(check);
    } catch (const OutOfMemory&) {
      throw;
    } catch (const Error& error) {
      check.passed = false;
      check.detail = error.what();
    }
    result_.stages.push_back(std::move(check));
  }

  /// What is no comparison; a failure where it throws, and nothing else.
  void attempt(Stage stage, std::string what, const std::function<void()>& act) {
    try {
      act();
    } catch (const OutOfMemory&) {
      throw;
    } catch (const Error& error) {
      add_equality(stage, std::move(what), [&](StageCheck&) { return std::string(error.what()); });
    }
  }

  /// What either holds or does not: `act` returns the first difference, empty when there is none.
  void add_equality(Stage stage, std::string what, const std::function<std::string(StageCheck&)>& act) {
    add(stage, std::move(what), "mismatch", [&](StageCheck& check) {
      check.detail = act(check);
      check.passed = check.detail.empty();
      check.error = check.passed ? 0 : 1;
    });
  }

  void add_values(Stage stage, std::string what, double tolerance,
                  const std::function<ErrorReport(StageCheck&)>& act) {
    add(stage, std::move(what), "relative_error", [&](StageCheck& check) {
      const ErrorReport report = act(check);
      check.error = report.relative_error;
      check.tolerance = std::max(tolerance, report.tolerance);
      check.passed = report.relative_error <= check.tolerance;  // false for NaN
      check.detail = report.describe();
    });
  }

 private:
  LayerCheck& result_;
};

}  // namespace moescope
