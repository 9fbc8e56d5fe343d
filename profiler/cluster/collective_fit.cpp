#include "profiler/cluster/collective_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/base/error.hpp"
#include "core/files/json_field.hpp"
#include "core/files/regular_file.hpp"
#include "profiler/study/sampling.hpp"

namespace moescope {
namespace {

constexpr double kMicro = 1e-6;

/// alpha + bytes / rate by least squares of relative errors.
struct Line {
  double alpha_s = 0;
  double s_per_byte = 0;

  double at(double bytes) const { return alpha_s + s_per_byte * bytes; }
};

Line fit_line(const CollectiveSeries& series, std::size_t left_out) {
  double w = 0;
  double wx = 0;
  double wy = 0;
  double wxx = 0;
  double wxy = 0;
  int sizes = 0;
  for (std::size_t i = 0; i < series.bytes.size(); ++i) {
    if (i == left_out || series.bytes[i] < kLargeExchangeBytes) {
      continue;
    }
    const double x = series.bytes[i];
    const double y = series.time_s[i];
    const double weight = 1 / (y * y);
    w += weight;
    wx += weight * x;
    wy += weight * y;
    wxx += weight * x * x;
    wxy += weight * x * y;
    ++sizes;
  }
  const std::string what = series.primitive + " " + series.launch;
  if (sizes < 2) {
    throw InvalidArgument("collectives", what,
                          fmt::format("needs two sizes of {:g} bytes or more", kLargeExchangeBytes));
  }
  Line line;
  line.s_per_byte = (w * wxy - wx * wy) / (w * wxx - wx * wx);
  line.alpha_s = (wy - line.s_per_byte * wx) / w;
  if (!(line.s_per_byte > 0) || line.alpha_s < 0) {
    throw InvalidArgument("collectives", what, "has no line that rises with the bytes");
  }
  return line;
}

std::size_t small_size(const CollectiveSeries& series) {
  const auto found =
      std::ranges::find_if(series.bytes, [](double bytes) { return bytes < kLargeExchangeBytes; });
  if (found == series.bytes.end()) {
    throw InvalidArgument("collectives", series.primitive + " " + series.launch, "has no small size");
  }
  return static_cast<std::size_t>(found - series.bytes.begin());
}

}  // namespace

CollectiveRecord parse_collectives(std::string_view json, std::string_view path) {
  const auto document = parse_json<nlohmann::json>(json, {std::string(path), ""});
  const JsonField root(document, path);
  CollectiveRecord record;
  record.machine = root.member("machine").text();
  record.source = root.member("source").text();
  const auto row_bytes = static_cast<double>(root.member("row_bytes").integer(1, 1 << 20));
  std::vector<double> rows;
  for (const JsonField& value : root.member("rows").elements()) {
    rows.push_back(static_cast<double>(value.integer(1, 1LL << 40)));
    if (rows.size() > 1 && rows.back() <= rows[rows.size() - 2]) {
      value.fail("must be more than the one before");
    }
  }
  for (const JsonField& entry : root.member("series").elements()) {
    CollectiveSeries& series = record.series.emplace_back();
    series.primitive = entry.member("primitive").text();
    series.launch = entry.member("launch").text();
    const auto factor = static_cast<double>(entry.member("row_factor").integer(1, 16));
    for (const JsonField& value : entry.member("time_us").elements()) {
      const double time = value.number();
      if (!(time > 0)) {
        value.fail("must be positive");
      }
      series.time_s.push_back(time * kMicro);
    }
    if (series.time_s.size() != rows.size()) {
      entry.member("time_us").fail(fmt::format("must have {} times, one for each of rows", rows.size()));
    }
    for (const double count : rows) {
      series.bytes.push_back(count * row_bytes * factor);
    }
  }
  return record;
}

CollectiveRecord read_collectives(const std::filesystem::path& file) {
  return parse_collectives(read_text(file), file.string());
}

TransferCurve fit_curve(const CollectiveSeries& series) {
  const Line line = fit_line(series, series.bytes.size());
  return {.small_s = series.time_s[small_size(series)],
          .alpha_s = line.alpha_s,
          .bytes_per_s = 1 / line.s_per_byte};
}

std::vector<HeldOutSize> hold_out(std::span<const CollectiveSeries> series) {
  std::vector<HeldOutSize> sizes;
  for (const CollectiveSeries& each : series) {
    for (std::size_t i = 0; i < each.bytes.size(); ++i) {
      double predicted = 0;
      if (each.bytes[i] >= kLargeExchangeBytes) {
        predicted = fit_line(each, i).at(each.bytes[i]);
      } else {
        std::vector<double> others;
        for (const CollectiveSeries& other : series) {
          if (other.launch == each.launch && other.primitive != each.primitive) {
            others.push_back(other.time_s[small_size(other)]);
          }
        }
        if (others.empty()) {
          throw InvalidArgument("collectives", each.primitive + " " + each.launch,
                                "has no other primitive under the same launch");
        }
        predicted = median(others);
      }
      sizes.push_back({each.primitive, each.launch, each.bytes[i], each.time_s[i], predicted});
    }
  }
  return sizes;
}

ErrorSummary summarise(std::span<const HeldOutSize> sizes) {
  if (sizes.empty()) {
    throw InternalError("no held-out sizes");
  }
  std::vector<Prediction> predictions(sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    predictions[i].predicted = sizes[i].predicted_s;
    predictions[i].measured = sizes[i].measured_s;
  }
  return summarise_errors(predictions);
}

}  // namespace moescope
