// strips_dgrad.cu's kernel with fp16 sums.
#include "kernels/backward/strips_dgrad_kernel.cuh"

namespace moescope::cuda {

template void launch_strips_dgrad_sums<StaircaseSums::kFp16>(const LayerShape&, const DeviceWeights&,
                                                             const StripsDgradArguments&, std::int64_t,
                                                             cudaStream_t);

}  // namespace moescope::cuda
