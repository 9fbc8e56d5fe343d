// Any bytes as a golden file: a verdict, or an Error. What is ok has a finite error within the tolerance.
#include <cmath>
#include <cstdlib>
#include <span>

#include "core/files/npy.hpp"
#include "fuzz_text.hpp"
#include "reference/golden/golden.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  fuzz::may_refuse([&] {
    ArrayFile file = parse_npz(std::as_bytes(std::span(data, size)), "fuzz.npz");
    std::size_t bytes = 0;
    for (const auto& [name, array] : file.arrays) {
      bytes += array.bytes.size();
    }
    constexpr std::size_t kMostBytes = 1 << 16;  // deflated zeros make long replays
    if (bytes > kMostBytes) {
      return;
    }
    const GoldenResult result = replay_golden("fuzz.npz", std::move(file));
    const bool ok = result.max_relative_error >= 0 && result.max_relative_error <= kGoldenTolerance;
    if ((result.status == Status::kOk) != ok || result.reason.empty() != ok) {
      std::abort();
    }
  });
  return 0;
}
