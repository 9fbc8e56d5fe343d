// Golden vectors of implementations from elsewhere, and batch-norm folding that they need.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>

#include "core/base/error.hpp"
#include "core/files/npy.hpp"
#include "reference/golden/golden.hpp"
#include "reference/stages/batch_norm.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/file_builders.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

const std::filesystem::path kGolden = std::filesystem::path(test::source_path("tests/data")) / "golden";

struct File {
  const char* name;
  const char* kind;
};

class GoldenReplay : public testing::TestWithParam<File> {};

TEST_P(GoldenReplay, ReproducesTheRecordedOutputs) {
  const auto result = replay_golden(kGolden / (std::string(GetParam().name) + ".npz"));
  EXPECT_EQ(result.status, Status::kOk) << result.reason;
  EXPECT_LE(result.max_relative_error, kGoldenTolerance);
  EXPECT_GE(result.max_relative_error, 0);
  EXPECT_EQ(result.kind, GetParam().kind);
}

constexpr std::array kFiles = {File{"deepseekmoe_v2", "deepseekmoe, gradients of the oracle"},
                               File{"gshard_topk_mixtral", "gshard, gradients of the oracle"},
                               File{"omnimoe_a", "omnimoe, with gradients"},
                               File{"omnimoe_b", "omnimoe, with gradients"},
                               File{"omnimoe_k1", "omnimoe, with gradients"},
                               File{"peer_relu", "peer, relu gates, gradients of the oracle"},
                               File{"peer_softmax", "peer, softmax gates, gradients of the oracle"},
                               File{"pkm", "pkm, gradients of the oracle"},
                               File{"router_all", "router"},
                               File{"router_square", "router"},
                               File{"router_tall", "router"}};

INSTANTIATE_TEST_SUITE_P(Files, GoldenReplay, testing::ValuesIn(kFiles),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Golden, EveryFileIsReplayed) {
  std::set<std::string> replayed;
  for (const File& file : kFiles) {
    replayed.insert(std::string(file.name) + ".npz");
  }
  for (const auto& entry : std::filesystem::directory_iterator(kGolden)) {
    EXPECT_TRUE(replayed.contains(entry.path().filename().string())) << entry.path();
  }
}

std::string refusal(const std::filesystem::path& file) {
  return test::error_text<FileError>([&] { replay_golden(file); });
}

TEST(Golden, MissingAndForeignFilesAreNamed) {
  const auto absent = (kGolden / "absent.npz").string();
  EXPECT_TRUE(refusal(absent).starts_with(absent)) << refusal(absent);
  const test::TemporaryDirectory directory;
  const auto foreign = directory.path() / "foreign.npy";
  std::ofstream(foreign, std::ios::binary)
      << std::string("\x93NUMPY\x01\x00\x76\x00", 10)
      << "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }" << std::string(118 - 57 - 1, ' ') << "\n"
      << std::string(4, '\0');
  EXPECT_EQ(refusal(foreign), foreign.string() + ": holds no arrays of a known golden file");
}

/// A router's golden file of one token on a grid of 1 x 2 with K = 1: both columns' logits, and what is
/// recorded.
std::string router_file(float col_0, float col_1, float score, float gate_softmax, float gate_probability,
                        const std::string& grid = "(1, 2)") {
  const auto floats = [](const std::string& shape, const std::vector<float>& values) {
    return test::npy("<f4", shape, test::bytes_of(values));
  };
  const auto number = [](std::int64_t value) {
    return test::npy("<i8", "()", test::bytes_of<std::int64_t>({value}));
  };
  return test::zip({{"row_logits.npy", floats("(1, 1)", {0})},
                    {"col_logits.npy", floats(grid, {col_0, col_1})},
                    {"top_k.npy", number(1)},
                    {"indices.npy", test::npy("<i8", "(1, 1)", test::bytes_of<std::int64_t>({0}))},
                    {"scores.npy", floats("(1, 1)", {score})},
                    {"gates_softmax.npy", floats("(1, 1)", {gate_softmax})},
                    {"gates_probability.npy", floats("(1, 1)", {gate_probability})}});
}

GoldenResult replayed(const std::string& file) {
  return replay_golden("r.npz", parse_npz(test::as_bytes(file), "r.npz"));
}

TEST(Golden, WhatIsNoNumberNeverPasses) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const float log_half = -0.69314718F;
  EXPECT_EQ(replayed(router_file(2, 2, log_half, 1, 0.5F)).status, Status::kOk);
  for (const float bad : {nan, inf, -inf, 7.0F}) {
    // One wrong output after another: each has to be found whatever the others say.
    for (const auto& file : {router_file(2, 2, bad, 1, 0.5F), router_file(2, 2, log_half, bad, 0.5F),
                             router_file(2, 2, log_half, 1, bad), router_file(2, 2, bad, bad, bad)}) {
      const GoldenResult result = replayed(file);
      EXPECT_EQ(result.status, Status::kFailed) << bad;
      EXPECT_FALSE(result.max_relative_error <= kGoldenTolerance) << bad;
      EXPECT_FALSE(result.reason.empty()) << bad;
    }
  }
  // Inputs that are no numbers have no right outputs.
  EXPECT_THROW((void)replayed(router_file(inf, 0, 0, 1, 1)), FileError);
}

TEST(Golden, ValuesThatCannotWorkAreTheFilesFault) {
  const std::string error = test::error_text<FileError>(
      [] { (void)replayed(router_file(2, 2, 0, 1, 1, "(2, 1)")); });  // two tokens against one
  EXPECT_TRUE(error.starts_with("r.npz: ")) << error;
}

TEST(BatchNorm, FoldedMapEqualsNormalisedMap) {
  HostTensor weight(Dtype::kF32, 2, 3);
  const std::vector<float> w = {1, -2, 3, 0.5F, 0.25F, -1};
  std::copy(w.begin(), w.end(), weight.f32().data);
  const std::vector<float> mean = {0.5F, -1};
  const std::vector<float> var = {4, 0.25F};
  const double eps = 1e-5;
  const auto folded = reference::fold_batch_norm(weight, mean, var, eps);
  const std::vector<double> x = {0.3, 1.7, -0.9};
  for (std::int64_t row = 0; row < 2; ++row) {
    double plain = 0;
    double ours = folded.bias[static_cast<std::size_t>(row)];
    for (std::int64_t k = 0; k < 3; ++k) {
      plain += weight.at(row, k) * x[static_cast<std::size_t>(k)];
      ours += folded.weight.at(row, k) * x[static_cast<std::size_t>(k)];
    }
    const auto at = static_cast<std::size_t>(row);
    EXPECT_NEAR(ours, (plain - mean[at]) / std::sqrt(var[at] + eps), 1e-6);
  }
}

TEST(BatchNorm, RefusesStatisticsThatDoNotFit) {
  const HostTensor weight = HostTensor::zeros(Dtype::kF32, 2, 3);
  const std::vector<float> one = {1};
  const std::vector<float> two = {1, 1};
  const std::vector<float> negative = {1, -1};
  const auto message = [&](const auto& mean, const auto& var) {
    return test::error_text<InvalidArgument>([&] { reference::fold_batch_norm(weight, mean, var, 1e-5); });
  };
  EXPECT_EQ(message(one, two), "running_mean = [1]: must be [2]");
  EXPECT_EQ(message(two, one), "running_var = [1]: must be [2]");
  EXPECT_EQ(message(two, negative), "running_var[1] = -1: running_var + eps (eps = 1e-05) must be positive");
}

}  // namespace
}  // namespace moescope
