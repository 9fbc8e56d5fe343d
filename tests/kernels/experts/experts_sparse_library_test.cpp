#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/experts/sparse_library.hpp"
#include "tests/support/expert_case.hpp"
#include "tests/support/gpu_guard.hpp"

namespace moescope {
namespace {

using test::DeviceExperts;
using test::DeviceOutput;
using test::ExpertCase;
using test::RoutingCase;

class SparseLibrary : public testing::TestWithParam<RoutingCase> {};

TEST_P(SparseLibrary, EqualsThePlainLoopEveryTimeItRuns) {
  MOESCOPE_NEEDS_GPU();
  const ExpertCase c = ExpertCase::make(GetParam(), 25);
  const DeviceExperts device(c);
  const DeviceOutput y(c.shape.num_tokens * c.shape.hidden_size);
  cuda::SparseLibrary library(c.shape, device.x(), device.weights(), device.routing(), y.get(), nullptr);
  EXPECT_GE(library.bytes(), cuda::SparseLibrary::memory_bytes(c.shape));
  const std::vector<double> reference = c.experts();
  for (int run = 0; run < 2; ++run) {
    y.poison();
    library.launch(nullptr);
    EXPECT_LE(test::relative_error(y.host(), reference), test::error_limit(c.shape.dtype)) << "run " << run;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, SparseLibrary, testing::ValuesIn(test::expert_cases()),
                         [](const auto& test) { return test::case_name(test.param); });

TEST(SparseLibraryCapture, RunsFromAGraph) {
  MOESCOPE_NEEDS_GPU();
  const ExpertCase c =
      ExpertCase::make({test::make_shape(70, 96, 16, 16, 9), test::RoutingSkew::kGaussian}, 26);
  const DeviceExperts device(c);
  const DeviceOutput y(c.shape.num_tokens * c.shape.hidden_size);
  const cuda::Stream stream;
  cuda::SparseLibrary library(c.shape, device.x(), device.weights(), device.routing(), y.get(), stream.get());
  library.launch(stream.get());
  stream.synchronize();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  MOESCOPE_CUDA_CHECK(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  library.launch(stream.get());
  MOESCOPE_CUDA_CHECK(cudaStreamEndCapture(stream.get(), &graph));
  MOESCOPE_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  y.poison();
  MOESCOPE_CUDA_CHECK(cudaGraphLaunch(executable, stream.get()));
  stream.synchronize();
  EXPECT_LE(test::relative_error(y.host(), c.experts()), test::error_limit(c.shape.dtype));
  MOESCOPE_CUDA_CHECK(cudaGraphExecDestroy(executable));
  MOESCOPE_CUDA_CHECK(cudaGraphDestroy(graph));
}

TEST(SparseLibraryErrors, TooManyPairsAreNamed) {
  MOESCOPE_NEEDS_GPU();
  const LayerShape shape = test::make_shape(1 << 20, 8, 1024, 1024, 4096);
  try {
    const cuda::SparseLibrary library(shape, nullptr, {}, {}, nullptr, nullptr);
    ADD_FAILURE() << "no error";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("num_tokens * top_k = 4294967296"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace moescope
