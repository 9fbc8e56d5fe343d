#include "core/layer/dtype.hpp"

#include "core/base/error.hpp"

namespace moescope {

std::string_view to_string(Dtype dtype) { return dtype == Dtype::kF32 ? "fp32" : "bf16"; }

Dtype parse_dtype(std::string_view text) {
  if (text == "fp32") {
    return Dtype::kF32;
  }
  if (text == "bf16") {
    return Dtype::kBF16;
  }
  throw InvalidArgument("dtype", text, "must be fp32 or bf16");
}

}  // namespace moescope
