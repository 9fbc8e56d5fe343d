#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/experts/staircase_tiles.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/expert_case.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/strip_batches.hpp"

namespace moescope {
namespace {

using cuda::StaircaseSums;
using test::bf16;
using test::ExpertCase;
using test::Logits;
using test::make_shape;
using test::RoutingSkew;
using test::StaircaseCase;

/// A case's inputs on host and device.
class Staircase {
 public:
  explicit Staircase(const StaircaseCase& c)
      : strips_(test::make_host_strips(c.shape, make_logits(c, c.shape.grid_rows, 1),
                                       make_logits(c, c.shape.grid_cols, 2), c.rule, c.tile_tokens)),
        case_(make_case(c, strips_.routing)),
        experts_(case_),
        bound_(1),
        uploaded_(strips_) {
    cuda::launch_expert_bound(case_.shape, experts_.weights(), bound_.get(), nullptr);
  }

  const ExpertCase& inputs() const { return case_; }

  /// Output in bf16, as floats, from sums, exponents and an output that were poisoned before.
  std::vector<float> run(StaircaseSums kind, const float* addend = nullptr) const {
    const LayerShape& shape = case_.shape;
    const cuda::DeviceBuffer<std::byte> sums(cuda::staircase_sums_bytes(shape, kind));
    const cuda::DeviceBuffer<std::int32_t> exponents(shape.num_tokens);
    const std::int64_t count = shape.num_tokens * shape.hidden_size;
    const cuda::DeviceBuffer<Bf16> output(count);
    MOESCOPE_CUDA_CHECK(cudaMemset(sums.get(), 0xff, static_cast<std::size_t>(sums.bytes())));
    MOESCOPE_CUDA_CHECK(cudaMemset(exponents.get(), 0xff, static_cast<std::size_t>(exponents.bytes())));
    MOESCOPE_CUDA_CHECK(cudaMemset(output.get(), 0xff, static_cast<std::size_t>(output.bytes())));
    const bool scaled = shape.gate_mode == GateMode::kProbability;
    const cuda::StaircaseOutput target{.kind = kind,
                                       .sums = sums.get(),
                                       .exponents = exponents.get(),
                                       .log_scales = scaled ? uploaded_.view().gate_shift : nullptr};
    cuda::launch_staircase_prepare(shape, experts_.x(), bound_.get(), uploaded_.view(), target, nullptr);
    cuda::launch_experts_staircase(shape, experts_.x(), experts_.weights(), uploaded_.view(), target,
                                   nullptr);
    cuda::launch_round_output(shape, target, addend, output.get(), nullptr);
    std::vector<Bf16> rounded(static_cast<std::size_t>(count));
    MOESCOPE_CUDA_CHECK(cudaMemcpy(rounded.data(), output.get(), static_cast<std::size_t>(output.bytes()),
                                   cudaMemcpyDeviceToHost));
    std::vector<float> values;
    for (const Bf16 value : rounded) values.push_back(to_float(value));
    return values;
  }

 private:
  static ExpertCase make_case(const StaircaseCase& c, const Routing& routing) {
    LayerShape shape = c.shape;
    shape.top_k = 1;  // a stand-in: the routing comes from the strips
    ExpertCase result = ExpertCase::make({shape, RoutingSkew::kSameExperts}, 5);
    result.shape = c.shape;
    result.routing = routing;
    return result;
  }

  test::HostStrips strips_;
  ExpertCase case_;
  test::DeviceExperts experts_;
  cuda::DeviceBuffer<float> bound_;
  test::UploadedStrips uploaded_;
};

/// Both kinds of sums against the plain loop, several runs over poisoned memory; fixed point bit for bit.
void expect_as_plain_loop(const StaircaseCase& c) {
  SCOPED_TRACE(c.shape.label() + " logits " + std::to_string(static_cast<int>(c.logits)));
  const Staircase staircase(c);
  const std::vector<double> reference = staircase.inputs().experts();
  const std::vector<float> fixed = staircase.run(StaircaseSums::kFixedPoint);
  EXPECT_LE(test::relative_error(fixed, reference), 4e-3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_LE(test::relative_error(staircase.run(StaircaseSums::kFp16), reference), 3e-3);
    EXPECT_EQ(staircase.run(StaircaseSums::kFixedPoint), fixed);
  }
}

TEST(ExpertsStaircase, EqualsThePlainLoopOnAwkwardShapes) {
  NEEDS_STAIRCASE_KERNEL();
  for (const StaircaseCase& c : test::awkward_cases()) {
    expect_as_plain_loop(c);
  }
}

TEST(ExpertsStaircase, EqualsThePlainLoopUnderEverySkew) {
  NEEDS_STAIRCASE_KERNEL();
  for (const StaircaseCase& c : test::skew_cases()) {
    expect_as_plain_loop(c);
  }
}

TEST(ExpertsStaircase, EqualsThePlainLoopForEveryTileSize) {
  NEEDS_STAIRCASE_KERNEL();
  for (const std::int64_t tile : {1, 7, 32, 63, 64, 65, 96, 127}) {
    for (const Logits logits : {Logits::kGaussian, Logits::kOneStrip}) {
      expect_as_plain_loop({bf16(make_shape(300, 104, 40, 90, 33)), logits, StripRule::kMinimalCover, tile});
      expect_as_plain_loop({bf16(make_shape(300, 104, 40, 90, 33)), logits, StripRule::kRowsOnly, tile});
    }
  }
}

TEST(ExpertsStaircase, EqualsThePlainLoopForEveryActivationAndGate) {
  NEEDS_STAIRCASE_KERNEL();
  for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kRelu}) {
    for (const GateMode gates : {GateMode::kSoftmax, GateMode::kProbability}) {
      for (const std::int64_t side : {40, 150, 250, 300}) {
        expect_as_plain_loop({bf16(make_shape(140, 64, side, side - 7, 60), activation, gates)});
      }
    }
  }
}

// exp(S) over a large grid adds up to some 1e-4: sums scaled for gates that add up to 1 kept 5 bits of it.
TEST(ExpertsStaircase, GatesFarBelowOneKeepTheirResolution) {
  NEEDS_STAIRCASE_KERNEL();
  for (const StripRule rule : {StripRule::kMinimalCover, StripRule::kRowsOnly}) {
    expect_as_plain_loop({bf16(make_shape(20, 64, 400, 400, 8), Activation::kGelu, GateMode::kProbability),
                          Logits::kFlat, rule});
  }
}

// Strips longer than a tile's segment: every segment adds its part.
TEST(ExpertsStaircase, LongStripsAreTakenInSegments) {
  NEEDS_STAIRCASE_KERNEL();
  expect_as_plain_loop({bf16(make_shape(150, 40, 1000, 20, 90))});
  expect_as_plain_loop({bf16(make_shape(150, 40, 20, 1001, 300), Activation::kGelu)});
}

// Every number of tokens modulo the tile and its warpgroups and warps, all in one strip.
TEST(ExpertsStaircase, TilesOfAnyFillEqualThePlainLoop) {
  NEEDS_STAIRCASE_KERNEL();
  for (const std::int64_t tokens : {15, 16, 17, 63, 64, 65, 127, 128, 129, 193, 257, 400}) {
    expect_as_plain_loop({bf16(make_shape(tokens, 72, 1, 48, 5))});
  }
}

TEST(ExpertsStaircase, AddendIsAddedOnce) {
  NEEDS_STAIRCASE_KERNEL();
  const Staircase staircase({bf16(make_shape(70, 64, 24, 24, 20))});
  std::vector<double> reference = staircase.inputs().experts();
  std::vector<float> addend;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    addend.push_back(static_cast<float>(i % 13) * 0.01F - 0.05F);
    reference[i] += static_cast<double>(addend.back());
  }
  const cuda::DeviceBuffer<std::byte> device = test::to_device(addend);
  for (const StaircaseSums kind : {StaircaseSums::kFp16, StaircaseSums::kFixedPoint}) {
    const auto* const values = reinterpret_cast<const float*>(device.get());
    EXPECT_LE(test::relative_error(staircase.run(kind, values), reference), 3e-3);
  }
}

TEST(ExpertsStaircaseHost, WhatItTakesIsSaid) {
  LayerShape shape = bf16(make_shape(4, 16, 4, 4, 2));
  EXPECT_FALSE(cuda::experts_staircase_supported(shape, test::large_gpu(80)));
  EXPECT_FALSE(cuda::experts_staircase_supported(shape, test::large_gpu(100)));
  shape.hidden_size = 12;
  EXPECT_FALSE(cuda::experts_staircase_supported(shape, test::large_gpu()));
  EXPECT_EQ(test::error_text<InvalidArgument>(
                [&] { cuda::launch_experts_staircase(shape, nullptr, {}, {}, {}, nullptr); }),
            "hidden_size = 12: must be a multiple of 8 on the GPU");
  shape.dtype = Dtype::kF32;
  EXPECT_EQ(test::error_text<InvalidArgument>(
                [&] { cuda::launch_experts_staircase(shape, nullptr, {}, {}, {}, nullptr); }),
            "dtype = fp32: the staircase kernel on strips takes bf16");
}

}  // namespace
}  // namespace moescope
