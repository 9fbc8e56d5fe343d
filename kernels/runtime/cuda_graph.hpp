#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <type_traits>

#include "kernels/runtime/cuda_raii.hpp"

/// Work captured from a stream, to be launched again and again.
namespace moescope::cuda {

using CudaGraph = UniqueObject<cudaGraph_t, cudaGraphDestroy>;
using CudaGraphExec = UniqueObject<cudaGraphExec_t, cudaGraphExecDestroy>;

/// Captures what `enqueue` puts on `stream`, and on streams that wait for it and are waited for again. Fails
/// when anything in there synchronises with the host or allocates. What `enqueue` throws is passed on; the
/// stream is usable afterwards.
template <class Enqueue>
CudaGraphExec capture_graph(cudaStream_t stream, Enqueue&& enqueue) {
  MOESCOPE_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  CudaGraph graph;
  try {
    enqueue();
  } catch (...) {
    (void)cudaStreamEndCapture(stream, graph.out());
    throw;
  }
  MOESCOPE_CUDA_CHECK(cudaStreamEndCapture(stream, graph.out()));
  CudaGraphExec executable;
  MOESCOPE_CUDA_CHECK(cudaGraphInstantiate(executable.out(), graph.get(), 0));
  return executable;
}

}  // namespace moescope::cuda
