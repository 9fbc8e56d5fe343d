#include "reference/golden/golden_file.hpp"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/worse_error.hpp"

namespace moescope::detail {
namespace {

std::span<const float> values_of(const HostTensor& tensor) {
  return {tensor.f32().data, static_cast<std::size_t>(tensor.size())};
}

}  // namespace

HostTensor Golden::matrix(const std::string& name) const {
  return file.get(path, name).to_tensor(Dtype::kF32, path, name);
}

std::vector<float> Golden::floats(const std::string& name) const {
  return file.get(path, name).to_floats(path, name);
}

std::vector<std::int64_t> Golden::integers(const std::string& name) const {
  return file.get(path, name).to_integers(path, name);
}

std::int64_t Golden::integer(const std::string& name) const { return only(integers(name), name); }

float Golden::number(const std::string& name) const { return only(floats(name), name); }

const std::vector<std::int64_t>& Golden::extents(const std::string& name, std::size_t rank) const {
  const auto& shape = file.get(path, name).shape;
  if (shape.size() != rank) {
    throw FileError(path, name, fmt::format("has {} axes, must have {}", shape.size(), rank));
  }
  return shape;
}

template <class T>
T Golden::only(const std::vector<T>& values, const std::string& name) const {
  if (values.size() != 1) {
    throw FileError(path, name, fmt::format("has {} values, must be one number", values.size()));
  }
  return values.front();
}

double max_relative_error(std::span<const float> ours, std::span<const float> theirs) {
  if (ours.size() != theirs.size()) {
    return std::numeric_limits<double>::infinity();
  }
  double error = 0;
  double scale = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    error = worse_error(error, std::abs(static_cast<double>(ours[i]) - theirs[i]));
    scale = worse_error(scale, std::abs(static_cast<double>(theirs[i])));
  }
  if (!std::isfinite(error) || !std::isfinite(scale)) {
    return std::numeric_limits<double>::infinity();
  }
  return error == 0 ? 0 : error / scale;
}

double max_relative_error(const HostTensor& ours, const HostTensor& theirs) {
  return max_relative_error(values_of(ours), values_of(theirs));
}

GoldenResult judged(std::string kind, double error, std::string_view where) {
  GoldenResult result{std::move(kind), Status::kOk, "", error};
  if (!(error <= kGoldenTolerance)) {
    result.status = Status::kFailed;
    result.reason =
        fmt::format("{}: max relative error {:.3g} is above {:.0e}", where, error, kGoldenTolerance);
  }
  return result;
}

}  // namespace moescope::detail
