// In the place of capi/cuda/ in a build without CUDA: capi/checks.cpp has refused the device before.
#include "capi/base/failure.hpp"
#include "capi/gpu/gpu.hpp"

namespace moescope::capi::gpu {
namespace {

[[noreturn]] void absent() {
  throw Failure(MOESCOPE_ERROR_NOT_BUILT, "device: this libmoescope was not built with CUDA");
}

}  // namespace

bool built() { return false; }
std::size_t workspace_bytes(const Call& /*call*/) { absent(); }
void select_forward(const Call& /*call*/, const void* /*row_logits*/, const void* /*col_logits*/,
                    void* /*ids*/, void* /*gates*/, void* /*scores*/) {
  absent();
}
void experts_forward(const Call& /*call*/, const void* /*x*/, const void* /*w_in*/, const void* /*w_out*/,
                     const void* /*ids*/, const void* /*gates*/, void* /*y*/) {
  absent();
}
void mlp_forward(const Call& /*call*/, const void* /*x*/, const void* /*gate*/, const void* /*up*/,
                 const void* /*down*/, void* /*y*/) {
  absent();
}
void layer_forward(const Call& /*call*/, const moescope_layer_inputs& /*inputs*/, void* /*y*/, void* /*ids*/,
                   void* /*gates*/) {
  absent();
}
void select_backward(const Call& /*call*/, const void* /*row_logits*/, const void* /*col_logits*/,
                     const void* /*ids*/, const void* /*gates_gradient*/, void* /*row_gradient*/,
                     void* /*col_gradient*/) {
  absent();
}
void experts_backward(const Call& /*call*/, const void* /*x*/, const void* /*w_in*/, const void* /*w_out*/,
                      const void* /*ids*/, const void* /*gates*/, const void* /*y_gradient*/,
                      const ExpertsGradients& /*gradients*/) {
  absent();
}
void mlp_backward(const Call& /*call*/, const void* /*x*/, const void* /*gate*/, const void* /*up*/,
                  const void* /*down*/, const void* /*y_gradient*/, const MlpGradients& /*gradients*/) {
  absent();
}
void layer_backward(const Call& /*call*/, const moescope_layer_inputs& /*inputs*/, const void* /*ids*/,
                    const void* /*gates*/, const void* /*y_gradient*/,
                    const moescope_layer_gradients& /*gradients*/) {
  absent();
}

}  // namespace moescope::capi::gpu
