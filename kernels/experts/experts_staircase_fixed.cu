// experts_staircase.cu's kernel with fixed-point sums.
#include "kernels/experts/experts_staircase_kernel.cuh"

namespace moescope::cuda {

template void launch_staircase<StaircaseSums::kFixedPoint>(const LayerShape&, const DeviceWeights&,
                                                           const StaircaseArguments&, std::int64_t,
                                                           cudaStream_t);

}  // namespace moescope::cuda
