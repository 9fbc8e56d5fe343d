#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace moescope {

/// Storage types of tensors. Accumulation is fp32 on every path and fp64 in the oracle (DESIGN section 9).
enum class Dtype : std::uint8_t { kF32, kBF16 };

/// "fp32" or "bf16", as on the command line and in rows.
std::string_view to_string(Dtype dtype);
/// Inverse of to_string; throws InvalidArgument("dtype", ...).
Dtype parse_dtype(std::string_view text);

constexpr std::int64_t dtype_bytes(Dtype dtype) { return dtype == Dtype::kF32 ? 4 : 2; }

/// bfloat16 in storage: the upper half of an IEEE binary32.
struct Bf16 {
  std::uint16_t bits;
};
static_assert(sizeof(Bf16) == 2);

constexpr float to_float(Bf16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}
constexpr float to_float(float value) { return value; }

/// Round to nearest, ties to even; NaN stays NaN (quiet), overflow becomes infinity.
constexpr Bf16 to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return Bf16{static_cast<std::uint16_t>((bits >> 16) | 0x0040U)};
  }
  return Bf16{static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16)};
}

/// The value that storage in `dtype` keeps of `value`.
constexpr float round_to(Dtype dtype, float value) {
  return dtype == Dtype::kF32 ? value : to_float(to_bf16(value));
}

}  // namespace moescope
