// experts_staircase.cu's kernel with fp16 sums.
#include "kernels/experts/experts_staircase_kernel.cuh"

namespace moescope::cuda {

template void launch_staircase<StaircaseSums::kFp16>(const LayerShape&, const DeviceWeights&,
                                                     const StaircaseArguments&, std::int64_t, cudaStream_t);

}  // namespace moescope::cuda
