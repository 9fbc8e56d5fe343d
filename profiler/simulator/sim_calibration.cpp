#include "profiler/simulator/sim_calibration.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/json_field.hpp"
#include "core/files/json_text.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {
namespace {

/// A stage that grows with its bound by less than this has not been seen to grow at all.
constexpr double kLeastStretch = 0.05;
/// Relative variance of the bounds below which two parameters cannot be told apart.
constexpr double kLeastSpread = 1e-3;

}  // namespace

StageFit fit_stage(std::string kernel, std::string stage, std::span<const FitPoint> points) {
  // Minimise sum ((a + b x - t) / t)^2 with weights 1 / t^2.
  double w = 0;
  double wx = 0;
  double wxx = 0;
  double wt = 0;
  double wxt = 0;
  for (const FitPoint& point : points) {
    if (!(point.bound_s > 0) || !(point.measured_s > 0)) {
      throw InternalError(fmt::format("a fit of {} {} was given a time that is not positive", kernel, stage));
    }
    const double weight = 1 / (point.measured_s * point.measured_s);
    w += weight;
    wx += weight * point.bound_s;
    wxx += weight * point.bound_s * point.bound_s;
    wt += weight * point.measured_s;
    wxt += weight * point.bound_s * point.measured_s;
  }
  if (points.empty()) {
    throw InternalError(fmt::format("a fit of {} {} was given no points", kernel, stage));
  }
  StageFit fit{std::move(kernel), std::move(stage), 0, wxt / wxx, static_cast<std::int64_t>(points.size())};
  const double determinant = w * wxx - wx * wx;
  if (points.size() > 1 && determinant > kLeastSpread * w * wxx) {
    const double fixed_s = (wxx * wt - wx * wxt) / determinant;
    const double stretch = (w * wxt - wx * wt) / determinant;
    if (fixed_s > 0) {
      fit.stretch = std::max(stretch, kLeastStretch);
      fit.fixed_s = stretch > kLeastStretch ? fixed_s : std::max((wt - kLeastStretch * wx) / w, 0.0);
    }
  }
  return fit;
}

const StageFit* Calibration::find(std::string_view kernel, Stage stage) const {
  const auto found = std::ranges::find_if(
      fits, [&](const StageFit& fit) { return fit.kernel == kernel && fit.stage == to_string(stage); });
  return found == fits.end() ? nullptr : &*found;
}

std::string carried_over(const Calibration& calibration, std::string_view device) {
  if (calibration.fits.empty() || calibration.device == device) {
    return "";
  }
  std::vector<std::string> kernels;
  for (const StageFit& fit : calibration.fits) {
    kernels.push_back(fit.kernel);
  }
  return fmt::format(
      "{}: fixed_s and stretch of {} kernels ({}) are carried over from {}, as are kernel constants in "
      "profiler/simulator/streams: "
      "an assumption (that launches, and what keeps a kernel from its bound, cost the same there)",
      device, kernels.size(), fmt::join(kernels, ", "), calibration.device);
}

Calibration parse_calibration(std::string_view json, std::string_view path) {
  const auto document = parse_json<nlohmann::json>(json, {std::string(path), ""});
  const JsonField file(document, path);
  Calibration calibration;
  calibration.device = file.member("device").text();
  calibration.source = file.member("source").text();
  std::set<std::pair<std::string, std::string>> seen;
  for (const JsonField& one : file.member("fits").elements()) {
    const auto within = [&](const char* key, bool (*holds)(double), const char* requirement) {
      const JsonField field = one.member(key);
      const double value = field.number();
      if (!holds(value)) {
        field.fail(requirement);
      }
      return value;
    };
    StageFit fit{
        one.member("kernel").text(), one.member("stage").text(),
        within(
            "fixed_s", [](double s) { return s >= 0 && s < 1; }, "must be in [0, 1)"),
        within(
            "stretch", [](double factor) { return factor > 0 && factor < 1e3; }, "must be in (0, 1000)"),
        one.member("points").integer(0)};
    if (!seen.emplace(fit.kernel, fit.stage).second) {
      one.fail("its kernel and stage stand there twice");
    }
    calibration.fits.push_back(std::move(fit));
  }
  if (file.has("constants")) {
    calibration.constants = parse_stream_constants(file.member("constants"));
  }
  return calibration;
}

Calibration read_calibration(const std::filesystem::path& file) {
  return parse_calibration(read_text(file), file.string());
}

std::string calibration_json(const Calibration& calibration) {
  nlohmann::ordered_json document;
  document["device"] = calibration.device;
  document["source"] = calibration.source;
  document["fits"] = nlohmann::ordered_json::array();
  for (const StageFit& fit : calibration.fits) {
    document["fits"].push_back({{"kernel", fit.kernel},
                                {"stage", fit.stage},
                                {"fixed_s", fit.fixed_s},
                                {"stretch", fit.stretch},
                                {"points", fit.points}});
  }
  if (calibration.constants) {
    document["constants"] = stream_constants_json(*calibration.constants);
  }
  return document.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace moescope
