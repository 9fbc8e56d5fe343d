// Any .npz as a trace of layers: the routing of each, or an Error.
#include <span>

#include "core/files/npy.hpp"
#include "core/workload/trace_file.hpp"
#include "fuzz_text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  fuzz::may_refuse([&] {
    const ArrayFile file = parse_npz(std::as_bytes(std::span(data, size)), "fuzz.npz");
    const TraceInfo info = trace_info(file, "fuzz.npz");
    fuzz::may_refuse([&] { (void)trace_routing(file, "fuzz.npz", std::nullopt).num_pairs(); });
    for (const std::int64_t layer : info.layers) {
      fuzz::may_refuse([&] { trace_routing(file, "fuzz.npz", layer).validate(); });
    }
  });
  return 0;
}
