#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/layer/dtype.hpp"
#include "core/workload/philox.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "tests/support/routings.hpp"

/// The expert stage's inputs on host and device with a plain fp64 loop as reference, for tests of its
/// kernels.
namespace moescope::test {

/// sigma of paper eq. 7, written out once more: tests share no code with what they test.
inline double reference_activation(Activation activation, double s) {
  switch (activation) {
    case Activation::kSilu:
      return s / (1 + std::exp(-s));
    case Activation::kGelu:
      return 0.5 * s * (1 + std::erf(s / std::numbers::sqrt2));
    case Activation::kRelu:
      return std::max(s, 0.0);
  }
  return 0;
}

/// A routing with X ~ N(0, 1), W, V ~ N(0, 1/d), rounded to the storage dtype. Float arrays keep the rounded
/// values.
struct ExpertCase {
  LayerShape shape;
  Routing routing;
  std::vector<float> x;      ///< [L, d]
  std::vector<float> w_in;   ///< [N, d]
  std::vector<float> w_out;  ///< [N, d]

  static ExpertCase make(const RoutingCase& c, std::uint64_t seed) {
    const LayerShape& shape = c.shape;
    const auto fill = [&](std::int64_t rows, double scale, std::uint32_t stream) {
      const Philox random(seed, stream);
      std::vector<float> values(static_cast<std::size_t>(rows * shape.hidden_size));
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = round_to(shape.dtype, static_cast<float>(scale * normal(random, i)));
      }
      return values;
    };
    const double weight_scale = 1 / std::sqrt(static_cast<double>(shape.hidden_size));
    return {shape, make_routing(c, seed), fill(shape.num_tokens, 1.0, 11),
            fill(shape.num_experts(), weight_scale, 12), fill(shape.num_experts(), weight_scale, 13)};
  }

  /// p = gate * sigma(x . w_in[e]) per pair.
  std::vector<double> scores() const {
    std::vector<double> p(routing.expert_ids.size());
    for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
      for (std::int64_t pair = routing.token_offsets[token]; pair < routing.token_offsets[token + 1];
           ++pair) {
        double dot = 0;
        for (std::int64_t i = 0; i < shape.hidden_size; ++i) {
          dot += static_cast<double>(x[token * shape.hidden_size + i]) *
                 static_cast<double>(w_in[routing.expert_ids[pair] * shape.hidden_size + i]);
        }
        p[pair] = routing.gates[pair] * reference_activation(shape.activation, dot);
      }
    }
    return p;
  }

  /// y = sum of p * w_out[e] over each token's pairs, [L, d].
  template <class Score>
  std::vector<double> combine(const std::vector<Score>& p) const {
    std::vector<double> y(static_cast<std::size_t>(shape.num_tokens * shape.hidden_size));
    for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
      for (std::int64_t pair = routing.token_offsets[token]; pair < routing.token_offsets[token + 1];
           ++pair) {
        for (std::int64_t i = 0; i < shape.hidden_size; ++i) {
          y[token * shape.hidden_size + i] +=
              static_cast<double>(p[pair]) *
              static_cast<double>(w_out[routing.expert_ids[pair] * shape.hidden_size + i]);
        }
      }
    }
    return y;
  }
  std::vector<double> experts() const { return combine(scores()); }
};

template <class T>
cuda::DeviceBuffer<std::byte> to_device(const std::vector<T>& values) {
  cuda::DeviceBuffer<std::byte> buffer(static_cast<std::int64_t>(values.size() * sizeof(T)));
  MOESCOPE_CUDA_CHECK(
      cudaMemcpy(buffer.get(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return buffer;
}

/// Float values in the storage dtype.
inline cuda::DeviceBuffer<std::byte> to_device(const std::vector<float>& values, Dtype dtype) {
  if (dtype == Dtype::kF32) {
    return to_device(values);
  }
  std::vector<Bf16> rounded(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) rounded[i] = to_bf16(values[i]);
  return to_device(rounded);
}

/// A float array on the device that starts as NaN everywhere, so that an element nobody wrote shows.
class DeviceOutput {
 public:
  explicit DeviceOutput(std::int64_t count) : buffer_(count) { poison(); }
  void poison() const {
    MOESCOPE_CUDA_CHECK(cudaMemset(buffer_.get(), 0xff, static_cast<std::size_t>(buffer_.bytes())));
  }
  float* get() const { return buffer_.get(); }
  /// Waits for the device.
  std::vector<float> host() const {
    MOESCOPE_CUDA_CHECK(cudaDeviceSynchronize());
    std::vector<float> values(static_cast<std::size_t>(buffer_.count()));
    MOESCOPE_CUDA_CHECK(cudaMemcpy(values.data(), buffer_.get(), static_cast<std::size_t>(buffer_.bytes()),
                                   cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  cuda::DeviceBuffer<float> buffer_;
};

/// An ExpertCase's inputs on the device.
class DeviceExperts {
 public:
  explicit DeviceExperts(const ExpertCase& c)
      : x_(to_device(c.x, c.shape.dtype)),
        w_in_(to_device(c.w_in, c.shape.dtype)),
        w_out_(to_device(c.w_out, c.shape.dtype)),
        expert_ids_(to_device(c.routing.expert_ids)),
        gates_(to_device(c.routing.gates)) {}

  const void* x() const { return x_.get(); }
  cuda::DeviceWeights weights() const {
    cuda::DeviceWeights weights;
    weights.w_in = w_in_.get();
    weights.w_out = w_out_.get();
    return weights;
  }
  cuda::DeviceRouting routing() const {
    return {reinterpret_cast<std::int32_t*>(expert_ids_.get()), reinterpret_cast<float*>(gates_.get())};
  }

 private:
  cuda::DeviceBuffer<std::byte> x_;
  cuda::DeviceBuffer<std::byte> w_in_;
  cuda::DeviceBuffer<std::byte> w_out_;
  cuda::DeviceBuffer<std::byte> expert_ids_;
  cuda::DeviceBuffer<std::byte> gates_;
};

/// ||out - reference|| / ||reference||; infinite when anything is NaN or the reference is zero.
inline double relative_error(const std::vector<float>& out, const std::vector<double>& reference) {
  if (out.size() != reference.size()) {
    return std::numeric_limits<double>::infinity();
  }
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double delta = static_cast<double>(out[i]) - reference[i];
    difference += delta * delta;
    norm += reference[i] * reference[i];
  }
  const double error = std::sqrt(difference / norm);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

/// The floor on quality of DESIGN section 9.
inline double error_limit(Dtype dtype) { return dtype == Dtype::kBF16 ? 4e-3 : 1e-5; }

/// Shapes for the expert kernels, in both dtypes: those of every schedule's tests, and rows of awkward length
/// (8, 96, 1000 and longer than one warp's and one team's share) with few and many workers per token.
inline std::vector<RoutingCase> expert_cases() {
  std::vector<RoutingCase> cases;
  for (const RoutingCase& c : routing_cases()) {
    if (c.skew != RoutingSkew::kTies) cases.push_back(c);
  }
  for (const std::int64_t hidden_size : {8, 96, 1000, 1024, 2056, 4096}) {
    cases.push_back({make_shape(1, hidden_size, 16, 32, 130), RoutingSkew::kGaussian});
    cases.push_back({make_shape(3, hidden_size, 48, 16, 5), RoutingSkew::kHotExpert});
    cases.push_back({make_shape(70, hidden_size, 10, 13, 37), RoutingSkew::kUniform});
  }
  cases.push_back({make_shape(300, 1024, 24, 24, 17), RoutingSkew::kGaussian});
  cases.push_back({make_shape(2200, 256, 8, 8, 9), RoutingSkew::kPopular});
  const std::size_t count = cases.size();
  for (std::size_t i = 0; i < count; ++i) {
    RoutingCase c = cases[i];
    cases[i].shape.dtype = Dtype::kF32;
    c.shape.dtype = Dtype::kBF16;
    // relu of a handful of scores may be all zero, and a reference of zero is no test data.
    const bool few_pairs = c.shape.num_pairs() < 64;
    c.shape.activation = i % 3 == 0                ? Activation::kSilu
                         : i % 3 == 1 || few_pairs ? Activation::kGelu
                                                   : Activation::kRelu;
    cases.push_back(c);
  }
  return cases;
}

/// Test name suffix, e.g. L3_d8_N48x16_K7_gaussian_bf16.
inline std::string case_name(const RoutingCase& c) {
  return c.name() + "_" + std::string(c.shape.dtype == Dtype::kF32 ? "fp32" : "bf16");
}

}  // namespace moescope::test
