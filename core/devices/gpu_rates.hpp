#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/cost/auto_schedule.hpp"
#include "core/devices/device_folders.hpp"

/// What schedule auto goes by on a GPU: rates fitted to recorded rows of it, as data/devices/NAME/rates.json
/// has them, or those of the nearest device, scaled by ceilings.
namespace moescope {

/// Of the two forms of PKM's and PEER's experts.
struct ProductKeyRates {
  double gather_bytes_per_s = 0;  ///< requested, of rows gathered token by token
  double memory_bytes_per_s = 0;
  double bf16_flop_per_s = 0;  ///< large products
  double fp32_flop_per_s = 0;  ///< multiply-adds in registers: what a product cannot pass
  double gather_fixed_s = 0;   ///< launches and whatever else does not grow with the batch
  double masked_fixed_s = 0;
  std::string source;
};

struct GpuRates {
  std::string device;                    ///< as the rows' header names it
  std::string source;                    ///< in a few words: it stands in every reason of auto
  std::string rows;                      ///< files and revisions; empty: not said
  std::vector<ScheduleRates> schedules;  ///< as schedules_of_gpu() has them, with rates
  std::optional<SelectionRates> selection;
  std::optional<ProductKeyRates> product_keys;
};

/// What auto chooses among on a GPU: the schedules without rates, with what is true of their kernels.
std::vector<ScheduleRates> schedules_of_gpu();

/// {"device", "source", "rows", "schedules": [{"schedule", "fixed_s", "memory_bytes_per_s",
/// "cache_bytes_per_s", "flop_per_s", "pair_s", "step_s", "chain_bytes_per_s"}], "selection":
/// {"pairs_of_few", "pairs_of_many", "strips_of_few", "strips_of_many"}, "product_keys": {...}}, of which
/// "rows", the three last of a schedule, "selection" and "product_keys" may be missing. Throws FileError
/// naming `path`, the member and what is wrong: a schedule that is none of schedules_of_gpu(), one twice or
/// missing, a rate that is not positive.
GpuRates parse_gpu_rates(std::string_view json, std::string_view path);
GpuRates read_gpu_rates(const std::filesystem::path& file);
std::string gpu_rates_json(const GpuRates& rates);

/// A device as it says of itself.
struct GpuFound {
  GpuTraits gpu;
  double peak_memory_bytes_per_s = 0;  ///< 0: not known
};

/// Rates for this device, each with the source that is printed with auto's reasons: its own folder's, else
/// those of the nearest folder that has any, scaled by the ratios of ceilings. Of a device without a folder
/// ceilings are taken from its memory's peak, its multiprocessors and their clock. Throws FileError when
/// there are no rates at all, or a file is wrong.
MachineRates schedule_rates(const std::vector<DeviceFolder>& folders, const GpuFound& device);
ProductKeyRates product_key_rates(const std::vector<DeviceFolder>& folders, const GpuFound& device);

}  // namespace moescope
