#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/contract/launch.hpp"
#include "kernels/runtime/device_info.hpp"
#include "tests/support/expert_case.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/host_strips.hpp"

/// Batches on strips for tests of the staircase kernels: what their logits look like, and DeviceStrips filled
/// from the host.

#define NEEDS_STAIRCASE_KERNEL()                                                            \
  do {                                                                                      \
    MOESCOPE_NEEDS_GPU();                                                                   \
    moescope::LayerShape any;                                                               \
    if (!moescope::cuda::experts_staircase_supported(any, moescope::cuda::current_gpu())) { \
      GTEST_SKIP() << "no staircase kernel for this device in this build";                  \
    }                                                                                       \
  } while (false)

namespace moescope::test {

/// What the logits of a batch look like.
enum class Logits : std::uint8_t {
  kGaussian,
  kPopular,   ///< Zipf popularity of rows and columns
  kTies,      ///< small integers: many equal scores, at the threshold too
  kSame,      ///< all tokens alike: every strip has all tokens or none
  kOneStrip,  ///< one row far ahead of all others
  kHot,       ///< a quarter of the tokens like kOneStrip
  kFlat,      ///< all but uniform: gates `probability` are small against 1, and so is their sum
};

struct StaircaseCase {
  LayerShape shape;
  Logits logits = Logits::kGaussian;
  StripRule rule = StripRule::kMinimalCover;
  std::int64_t tile_tokens = kStripTileTokens;
};

inline std::vector<float> make_logits(const StaircaseCase& c, std::int64_t width, std::uint32_t stream) {
  const Philox random(17, stream);
  const RoutingSkew skew = c.logits == Logits::kPopular ? RoutingSkew::kPopular
                           : c.logits == Logits::kTies  ? RoutingSkew::kTies
                                                        : RoutingSkew::kGaussian;
  std::vector<float> logits;
  for (std::int64_t token = 0; token < c.shape.num_tokens; ++token) {
    const std::int64_t drawn = c.logits == Logits::kSame ? 0 : token;
    std::vector<double> side = random_side(random, drawn, width, 0, skew);
    const bool hot = c.logits == Logits::kOneStrip || (c.logits == Logits::kHot && token % 4 == 0);
    if (c.logits == Logits::kFlat) std::ranges::for_each(side, [](double& value) { value *= 0.01; });
    if (hot && stream == 1) side[static_cast<std::size_t>(width / 2)] += 9;
    logits.insert(logits.end(), side.begin(), side.end());
  }
  return logits;
}

/// HostStrips on the device: all that the kernels after the selection read.
class UploadedStrips {
 public:
  explicit UploadedStrips(const HostStrips& strips) {
    view_.row_log_probs = upload(strips.row_log_probs);
    view_.col_log_probs = upload(strips.col_log_probs);
    view_.uncovered_rows = upload(strips.uncovered_rows);
    view_.threshold = upload(strips.threshold);
    view_.tie_limit = upload(strips.tie_limit);
    view_.gate_shift = upload(strips.gate_shift);
    view_.cover_sizes = upload(strips.cover_sizes);
    view_.strip_offsets = upload(strips.strip_offsets);
    view_.strip_tokens = upload(strips.strip_tokens);
    view_.tiles = upload(strips.tiles);
    view_.counts =
        upload(std::vector<std::int32_t>{static_cast<std::int32_t>(strips.strip_tokens.size()),
                                         static_cast<std::int32_t>(strips.tiles.size()), 1 << 30, 1 << 30});
  }

  /// With the covers as [L, max_cover]; unused places hold what no strip is.
  UploadedStrips(const HostStrips& strips, std::int64_t max_cover) : UploadedStrips(strips) {
    std::vector<std::int32_t> cover;
    for (const std::vector<std::int32_t>& own : strips.covers) {
      cover.insert(cover.end(), own.begin(), own.end());
      cover.resize(cover.size() + static_cast<std::size_t>(max_cover) - own.size(), -1);
    }
    view_.cover = upload(cover);
  }

  const cuda::DeviceStrips& view() const { return view_; }

 private:
  template <class T>
  T* upload(const std::vector<T>& values) {
    arrays_.push_back(to_device(values));
    return reinterpret_cast<T*>(arrays_.back().get());
  }

  std::vector<cuda::DeviceBuffer<std::byte>> arrays_;
  cuda::DeviceStrips view_;
};

inline LayerShape bf16(LayerShape shape, Activation activation = Activation::kSilu,
                       GateMode gates = GateMode::kSoftmax) {
  shape.dtype = Dtype::kBF16;
  shape.activation = activation;
  shape.gate_mode = gates;
  return shape;
}

/// Shapes that divide nothing, from one pair to a strip of many segments, under either rule.
inline std::vector<StaircaseCase> awkward_cases() {
  std::vector<StaircaseCase> cases;
  for (const LayerShape& shape :
       {make_shape(1, 8, 4, 4, 1), make_shape(1, 32, 8, 8, 64), make_shape(3, 8, 48, 16, 7),
        make_shape(33, 24, 7, 11, 77), make_shape(50, 16, 1, 64, 9), make_shape(50, 16, 64, 1, 9),
        make_shape(64, 40, 16, 16, 1), make_shape(17, 96, 4, 32, 12), make_shape(130, 72, 24, 40, 33),
        make_shape(300, 1000, 48, 16, 37), make_shape(257, 104, 130, 250, 100),
        make_shape(100, 64, 320, 320, 200), make_shape(60, 64, 444, 90, 150)}) {
    cases.push_back({bf16(shape)});
    cases.push_back({bf16(shape), Logits::kGaussian, StripRule::kRowsOnly});
  }
  return cases;
}

/// Every skew on three grids.
inline std::vector<StaircaseCase> skew_cases() {
  std::vector<StaircaseCase> cases;
  for (const Logits logits :
       {Logits::kGaussian, Logits::kPopular, Logits::kTies, Logits::kSame, Logits::kOneStrip, Logits::kHot}) {
    cases.push_back({bf16(make_shape(300, 256, 64, 64, 32)), logits});
    cases.push_back({bf16(make_shape(200, 96, 100, 37, 111)), logits});
    cases.push_back({bf16(make_shape(400, 72, 200, 320, 90)), logits, StripRule::kRowsOnly});
  }
  return cases;
}

}  // namespace moescope::test
