// Files of clusters and of measured collectives: any text is parsed or refused with a typed error, and what
// was parsed gives finite times.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/base/error.hpp"
#include "profiler/cluster/cluster_spec.hpp"
#include "profiler/cluster/collective_fit.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const ClusterSpec cluster = parse_cluster(text, "fuzz.json");
    for (const double bytes : {0.0, 1.0, 1e6, 1e9}) {
      if (!std::isfinite(cluster.all_gather.time_s(bytes)) ||
          !std::isfinite(cluster.all_to_all.time_s(bytes))) {
        std::abort();
      }
    }
    (void)cluster.extrapolated(cluster.gpus(), 1e12);
  } catch (const FileError&) {
  }
  try {
    (void)hold_out(parse_collectives(text, "fuzz.json").series);
  } catch (const FileError&) {
  } catch (const InvalidArgument&) {
  }
  return 0;
}
